#!/bin/bash
# The units under a real systemd: it is booted as process 1 of namespaces of its own, over a copy of this machine's
# root that is thrown away, and has the package installed. Not part of make test: it wants root, overlayfs, cgroup2,
# qemu-utils, nbdkit, and systemd itself (Debian: systemd, without its being this machine's process 1).
# usage, after make deb: packaging/try-systemd.sh        prints a line for each check; status 0: all hold
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)

if [ "${1:-}" = boot ]; then # within the namespaces; $2 is the work folder
	work=$2
	mount --make-rprivate /
	mount -t tmpfs none "$work"
	mkdir "$work"/{up,work,root}
	mount -t overlay overlay -o "lowerdir=/,upperdir=$work/up,workdir=$work/work" "$work/root"
	cp "$here"/bin/blockd_*.deb "$here/packaging/try-systemd.sh" "$work/root/root/"
	cd "$work/root"
	for kind in proc:proc sysfs:sys cgroup2:sys/fs/cgroup tmpfs:run tmpfs:tmp tmpfs:dev; do mount -t "${kind%%:*}" none "${kind#*:}"; done
	for d in null zero full random urandom tty; do touch "dev/$d" && mount --bind "/dev/$d" "dev/$d"; done
	mkdir dev/shm
	ln -s /proc/self/fd dev/fd
	# Nothing of this machine's own services; one that runs the checks.
	rm -rf etc/systemd/system/*
	ln -s /dev/null etc/systemd/system/systemd-udevd.service
	printf '%s\n' '[Unit]' 'DefaultDependencies=no' 'After=sysinit.target dbus.socket' 'Requires=sysinit.target dbus.socket' \
		'[Service]' 'Type=oneshot' 'Environment=HOME=/root' 'ExecStart=/bin/bash /root/try-systemd.sh checks' \
		'StandardOutput=append:/root/report' 'StandardError=inherit' 'TimeoutStartSec=infinity' \
		'ExecStopPost=/bin/systemctl --force --force poweroff' >etc/systemd/system/try.service
	touch root/report
	mount --bind "$3" root/report
	mkdir old
	pivot_root . old
	umount -l /old
	exec env -i container=try PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --log-target=null --show-status=0 --unit=try.service
fi

if [ "${1:-}" != checks ]; then
	work=$(mktemp -d)
	report=$(mktemp)
	group=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)/try-$$
	mkdir "$group"
	trap 'find "$group" -depth -type d -exec rmdir {} \;; rmdir "$work"; rm -f "$report"' EXIT
	(
		echo $BASHPID >"$group/cgroup.procs"
		exec timeout 300 unshare --mount --pid --cgroup --ipc --uts --net --fork --kill-child "$0" boot "$work" "$report" </dev/null
	) || true
	cat "$report"
	grep -q '^done$' "$report" && ! grep -q '^WRONG' "$report"
	exit
fi

# The checks, within the instance.
set +e
check() { # TEXT COMMAND...
	local text=$1
	shift
	if "$@" >/root/said 2>&1; then echo "holds: $text"; else
		echo "WRONG: $text"
		sed 's/^/    /' /root/said
	fi
}
state() { systemctl show "$1" -p "$2" --value; }
is() { [ "$(state "$1" "$2")" = "$3" ] || { echo "$2 is $(state "$1" "$2")"; return 1; }; }
soon() { for _ in $(seq 300); do "$@" && return; sleep 0.1; done; return 1; }
restarted() { [ "$(state blockd@a MainPID)" != "$pid" ] && [ "$(state blockd@a SubState)" = running ]; }
ip link set lo up
dpkg -i /root/blockd_*.deb >/dev/null
sed 's#/NAME/#/a/#g' /usr/share/doc/blockd/examples/example.yaml >/etc/blockd/a.yaml
qmp=/run/blockd/a/qmp.sock

check 'a start without its image fails' bash -c '! systemctl start blockd@a'
systemctl stop blockd@a
systemctl reset-failed blockd@a 2>/dev/null
runuser -u blockd -- blockd img create -q -f qcow2 /var/lib/blockd/a/disk.qcow2 1G
check 'a start returns when clients are served' bash -c "systemctl start blockd@a && blockd qmp $qmp query-block-exports"
pid=$(state blockd@a MainPID)
check 'it has no capabilities' grep -q '^CapEff:.0000000000000000' "/proc/$pid/status"
check 'a reload leaves it running' bash -c "systemctl reload blockd@a && blockd qmp $qmp query-version"
check '... as the same process' is blockd@a MainPID "$pid"
kill -KILL "$pid"
check 'one that dies is started again' soon restarted
check '... and serves' bash -c "blockd qmp $qmp query-block-exports | grep -q export0"
mkdir -p /etc/systemd/system/blockd@.service.d
printf '[Service]\nWatchdogSec=4\n' >/etc/systemd/system/blockd@.service.d/watchdog.conf
systemctl daemon-reload
systemctl restart blockd@a
pid=$(state blockd@a MainPID)
sleep 9
check 'signs of life satisfy the watchdog' is blockd@a MainPID "$pid"
kill -STOP "$pid"
check 'one that gives none is started again' soon restarted
pid=$(state blockd@a MainPID)

nbdkit -f -U /var/lib/blockd/a/n memory 1G &
storage=$!
soon test -S /var/lib/blockd/a/n && chown blockd /var/lib/blockd/a/n
blockd qmp $qmp blockdev-add driver=nbd node-name=n server.type=unix server.path=/var/lib/blockd/a/n >/dev/null
blockd qmp $qmp blockdev-backup job-id=j device=n target=disk sync=full speed=1000000 >/dev/null 2>&1 || true
kill -STOP $storage
check 'an end with storage that hangs is no failure' systemctl stop blockd@a
check '... nor one for the watchdog' is blockd@a Result success
kill -KILL $storage

mkdir -p /var/lib/blockd/b && chown blockd /var/lib/blockd/b
runuser -u blockd -- blockd img create -q -f qcow2 /var/lib/blockd/b/disk.qcow2 1G
sed 's#/NAME/#/b/#g; s#^qmp: .*#qmp: ["fd:qmp"]#' /usr/share/doc/blockd/examples/example.yaml >/etc/blockd/b.yaml
systemctl start blockd-qmp@b.socket
qmp=/run/blockd/b/qmp.sock
check 'the socket does not start the daemon' is blockd@b ActiveState inactive
check 'its first client does' bash -c "blockd qmp $qmp query-block-exports | grep -q export0"
check 'a restart keeps the socket' bash -c "systemctl restart blockd@b && blockd qmp $qmp query-version"
check 'quit is no failure' bash -c "blockd qmp $qmp quit && sleep 1 && [ \$(systemctl show blockd@b -p Result --value) = success ]"
check 'the next client starts it again' blockd qmp $qmp query-version
check 'the package goes, and its instances' bash -c '! dpkg --purge blockd 2>&1 | grep -i error; ! systemctl is-active --quiet blockd@b'
echo done
