# What is in the binary besides: mysql for sources of MySQL and MariaDB.
TAGS =

.PHONY: build test lint bench

build:
	CGO_ENABLED=0 go build -tags '$(TAGS)' -trimpath -ldflags '-s -w' -o bin/fleetbus ./cmd/fleetbus

test:
	.ci/test $(TESTFLAGS)

lint:
	.ci/lint

bench:
	.ci/bench
