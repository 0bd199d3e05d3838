#!/bin/sh
# Runs in a machine of its own, which has nothing but Debian and systemd: what is
# done with a package, from its installation until nothing is left of it.
# /srv/packages/old.deb and /srv/packages/new.deb are the versions 1.0.0 and 1.0.1.
set -eux
export DEBIAN_FRONTEND=noninteractive HOME=/root

owner() { [ "$(stat -c '%U:%G %a' "$1")" = "$2" ] || { echo "$1 is $(stat -c '%U:%G %a' "$1"), not $2"; exit 1; }; }
no() { if "$@"; then echo "this must fail: $*"; exit 1; fi; }
pid() { systemctl show -p MainPID --value fleetbus; }

# Installed, it is there and does nothing.
dpkg -i /srv/packages/old.deb >/tmp/said
grep 'fleetbus init' /tmp/said
owner /etc/fleetbus 'root:fleetbus 750'
owner /etc/fleetbus/fleetbus.yaml 'root:fleetbus 640'
owner /var/lib/fleetbus 'fleetbus:fleetbus 700'
no systemctl is-active fleetbus
no systemctl is-enabled fleetbus
fleetbus config check
[ "$(fleetbus version | head -n 1)" = 'fleetbus 1.0.0' ]
systemd-analyze verify --man=no fleetbus.service
systemd-analyze security --offline=true --threshold=20 /lib/systemd/system/fleetbus.service | tail -n 1

# Without a node it does not start, and does not try for ever.
no systemctl start fleetbus
no systemctl is-active fleetbus
systemctl reset-failed fleetbus

# Root makes a node, and the service has it.
fleetbus init --advertise 127.0.0.1
owner /etc/fleetbus/fleetbus.yaml 'root:fleetbus 640'
grep '^advertise: 127.0.0.1' /etc/fleetbus/fleetbus.yaml
[ -z "$(find /var/lib/fleetbus ! -user fleetbus)" ]
systemctl enable --now fleetbus
[ "$(systemctl show -p StatusText --value fleetbus)" = serving ]
[ "$(ps -o user= -p "$(pid)" 2>/dev/null || stat -c %U "/proc/$(pid)")" = fleetbus ]
fleetbus account add acme
fleetbus status

# A reload is over when systemctl says so, and the process is the same.
before=$(pid)
systemctl reload fleetbus
systemctl is-active fleetbus
[ "$(pid)" = "$before" ]
journalctl -u fleetbus | grep 'configuration reloaded'

# An upgrade restarts what runs, keeps every setting, and asks nothing.
dpkg -i /srv/packages/new.deb </dev/null
systemctl is-active fleetbus
[ "$(pid)" != "$before" ]
[ "$(fleetbus version | head -n 1)" = 'fleetbus 1.0.1' ]
grep '^advertise: 127.0.0.1' /etc/fleetbus/fleetbus.yaml
fleetbus account info acme
[ "$(systemctl show -p Result --value fleetbus)" = success ]
[ "$(systemctl show -p NRestarts --value fleetbus)" = 0 ]

# What does not run stays so.
systemctl stop fleetbus
[ "$(systemctl show -p Result --value fleetbus)" = success ]
dpkg -i /srv/packages/new.deb </dev/null
no systemctl is-active fleetbus

# Removed, it is stopped; what it stored is there, and is there again.
systemctl start fleetbus
dpkg -r fleetbus
no systemctl is-active fleetbus
[ ! -e /usr/bin/fleetbus ]
[ -e /etc/fleetbus/fleetbus.yaml ]
[ -e /var/lib/fleetbus ]
dpkg -i /srv/packages/new.deb </dev/null
systemctl start fleetbus
fleetbus account info acme

# Purged, only the data is left, and who removes it is told.
dpkg -P fleetbus >/tmp/said
cat /tmp/said
grep 'removing /etc/fleetbus/fleetbus.yaml' /tmp/said
grep 'rm -r /var/lib/fleetbus' /tmp/said
[ -e /var/lib/fleetbus ]
rm -r /var/lib/fleetbus
find / -xdev \( -path /proc -o -path /sys -o -path /srv/packages \) -prune -o -name '*fleetbus*' -print >/tmp/left
cat /tmp/left
[ ! -s /tmp/left ]

# A node that never was leaves nothing to keep.
dpkg -i /srv/packages/new.deb </dev/null
dpkg -P fleetbus
[ ! -e /var/lib/fleetbus ]
echo all is well
