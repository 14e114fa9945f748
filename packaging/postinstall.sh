#!/bin/sh
set -e
# DPKG_ROOT is where the package is installed to, "" for the running system.
if command -v systemd-sysusers >/dev/null; then
	systemd-sysusers ${DPKG_ROOT:+--root="$DPKG_ROOT"} blockd.conf
fi
if [ -z "$DPKG_ROOT" ] && [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	# Guests have their disks there, and jobs run: when they can do without is not for an upgrade to say.
	if systemctl --quiet is-active 'blockd@*.service'; then
		echo "blockd: instances that run go on with the program that they have until you restart them"
	fi
fi
