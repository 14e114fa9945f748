#!/bin/sh
set -e
# DPKG_ROOT is where the package is installed to, "" for the running system.
if command -v systemd-sysusers >/dev/null; then
	systemd-sysusers ${DPKG_ROOT:+--root="$DPKG_ROOT"} blockd.conf
fi
if [ -z "$DPKG_ROOT" ] && [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	# What was running goes on with the new program.
	systemctl try-restart 'blockd@*.service'
fi
