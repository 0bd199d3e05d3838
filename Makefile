# lean leaves out what few nodes need and is large: sources of databases, managers that use
# ACME, the console, the demonstration, what is about other brokers, and the benches of this
# project. Empty leaves out nothing, as packages have it.
TAGS = lean

# FUZZ is how many executions each parser gets, or for how long: 10000000, 5m.
FUZZ = 30s

.PHONY: build package test lint compare attack fuzz

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

# Every attack there is, and what became of each; docs/security.md has the table.
attack:
	go run ./internal/attack/run attack

fuzz:
	go run ./internal/attack/run fuzz $(FUZZ)
