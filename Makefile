# lean leaves out what few nodes need and is large: sources of databases, managers that use
# ACME, the console, the demonstration, what is about other brokers, and the benches of this
# project; and it knows names of hosts in ASCII only. Empty leaves out nothing, as packages have it.
TAGS = lean

# FUZZ is how many executions each parser gets, or for how long: 10000000, 5m.
FUZZ = 30s

.PHONY: build package test lint compare attack fuzz chaos chaos-down

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

# chaos breaks a fleet in every way, once and then at random for some minutes, as root, and
# judges what became of all that was promised. CHAOS=long does so for hours; otherwise it
# has flags: make chaos CHAOS='-seed 7 -faults kill-leader,cut', or CHAOS='-nodes 1'. What runs
# with -record FILE did is added up by CHAOS='sum FILE'.
CHAOS =

chaos:
	go run ./internal/chaos/run $(if $(filter long,$(CHAOS)),-for 4h -rounds 15,$(CHAOS))

# chaos-down ends a run that is under way.
chaos-down:
	go run ./internal/chaos/run down
