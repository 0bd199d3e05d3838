# lean leaves out what few need and is large: sources of MySQL and SQLite, the benches
# of this project, and the ACME authority of the demonstration. Empty leaves out nothing.
TAGS = lean

.PHONY: build test lint bench

build:
	CGO_ENABLED=0 go build -tags '$(TAGS)' -trimpath -ldflags '-s -w' -o bin/fleetbus ./cmd/fleetbus

test:
	.ci/test $(TESTFLAGS)

lint:
	.ci/lint

bench:
	.ci/bench
