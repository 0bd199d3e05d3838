package proxy_test

import (
	"net/http"
	"testing"

	"github.com/fleetbus/fleetbus/internal/await"
)

// TestMain fails if the tests leave a goroutine behind.
func TestMain(m *testing.M) { await.Main(m, http.DefaultClient.CloseIdleConnections) }
