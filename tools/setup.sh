#!/bin/sh
# Installs what is missing of the named groups when it may (root, with apt-get), and else says in one line
# what to install. Exit status: 0 when everything named is there, 1 when something is missing.
#
# usage: tools/setup.sh GROUP...     groups: python qemu rival nbd fio tls compiler source package emulator goqemu console
set -u

# need GROUP: prints the packages of a group that are missing.
need() {
	case $1 in
	python) command -v /usr/bin/python3 >/dev/null || echo python3 ;;
	qemu) command -v qemu-img >/dev/null && command -v qemu-io >/dev/null || echo qemu-utils ;;
	rival) command -v qemu-storage-daemon >/dev/null || echo qemu-system-common ;;
	nbd)
		command -v nbdinfo >/dev/null && command -v nbdcopy >/dev/null || echo libnbd-bin
		command -v nbdkit >/dev/null || echo nbdkit
		/usr/bin/python3 -c 'import nbd' 2>/dev/null || echo python3-libnbd
		;;
	tls) command -v openssl >/dev/null || echo openssl ;;
	source) # of the distribution's packages
		! command -v apt-get >/dev/null || command -v dpkg-source >/dev/null || echo dpkg-dev
		;;
	package)
		command -v systemd-analyze >/dev/null || echo systemd
		command -v man >/dev/null || echo man-db
		;;
	emulator) command -v qemu-system-x86_64 >/dev/null || echo qemu-system-x86 ;;
	goqemu)
		[ -d /usr/share/gocode/src/github.com/digitalocean/go-qemu/qmp ] || echo golang-github-digitalocean-go-qemu-dev
		;;
	console) # its npm package comes after these; see modules
		command -v node >/dev/null || echo nodejs
		command -v npm >/dev/null || echo npm
		command -v chromium >/dev/null || echo chromium
		command -v dot >/dev/null || echo graphviz
		;;
	fio) command -v fio >/dev/null || echo fio ;;
	compiler)
		echo 'int main(void) { return 0; }' | "${CC:-cc}" -xc -o /dev/null - 2>/dev/null || echo gcc libc6-dev
		;;
	*)
		echo "setup: unknown group $1" >&2
		exit 2
		;;
	esac
}

missing() {
	for group in "$@"; do need "$group"; done | tr '\n' ' '
}

# modules: what the console's tests have from npm, as their lock file has it: what drives the browser, and
# what checks types.
modules() {
	case " $* " in *' console '*) ;; *) return 0 ;; esac
	folder=$(dirname "$0")/../web/console/test
	[ ! -d "$folder/node_modules/playwright-core" ] || [ ! -d "$folder/node_modules/typescript" ] || return 0
	if [ "$(id -u)" = 0 ] && command -v npm >/dev/null; then
		echo "setup: installing playwright-core and typescript"
		(cd "$folder" && npm ci --silent --ignore-scripts --no-audit --no-fund) && return 0
	fi
	echo "setup: missing: install it with: (cd web/console/test && npm ci --ignore-scripts)" >&2
	return 1
}

wanted=$(missing "$@")
if [ -z "$wanted" ]; then
	modules "$@"
	exit
fi

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	echo "setup: installing $wanted"
	log=$(mktemp)
	export DEBIAN_FRONTEND=noninteractive
	# One package that cannot be had must not keep the others away.
	if ! { apt-get -q update && apt-get -q -y --no-install-recommends install $wanted; } >"$log" 2>&1; then
		for package in $wanted; do
			apt-get -q -y --no-install-recommends install "$package" >>"$log" 2>&1 || true
		done
	fi
	wanted=$(missing "$@")
	[ -z "$wanted" ] || tail -n 5 "$log" >&2
	rm -f "$log"
fi

modules "$@"
modules_status=$?
[ -n "$wanted" ] || exit $modules_status
echo "setup: missing: install it with: apt-get install $wanted" >&2
exit 1
