#!/bin/sh
set -e
# An upgrade leaves the instances alone.
if [ "$1" = remove ] && [ -z "$DPKG_ROOT" ] && [ -d /run/systemd/system ]; then
	systemctl stop 'blockd@*.service' 'blockd-qmp@*.socket'
fi
