#!/bin/sh
set -e
# An upgrade restarts the instances itself, once the new program is there.
if [ "$1" = remove ] && [ -z "$DPKG_ROOT" ] && [ -d /run/systemd/system ]; then
	systemctl stop 'blockd@*.service' 'blockd-qmp@*.socket'
fi
