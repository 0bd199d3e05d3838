# lean leaves out what few nodes need and is large: sources of databases, managers that use
# ACME, the console, the demonstration, what is about other brokers, and the benches of this
# project. Empty leaves out nothing, as packages have it.
TAGS = lean

.PHONY: build package test lint compare

build:
	CGO_ENABLED=0 go build -tags '$(TAGS)' -trimpath -ldflags '-s -w' -o bin/fleetbus ./cmd/fleetbus

package:
	deploy/package

test:
	.ci/test $(TESTFLAGS)

lint:
	.ci/lint

# COMPARE=quick shows that it works.
compare:
	.ci/compare
