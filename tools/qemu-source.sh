#!/bin/sh
# Prints the folder of the distribution's QEMU source package, unpacked; fetches it into a cache outside the
# tree when it is not there. The machine's package sources stay as they are: a list of its own, made from
# theirs, has what apt-get needs for source packages.
#
# usage: tools/qemu-source.sh     QEMU_SOURCE=FOLDER names one that is unpacked already
set -eu

if [ -n "${QEMU_SOURCE:-}" ]; then
	echo "$QEMU_SOURCE"
	exit 0
fi
cache=${XDG_CACHE_HOME:-$HOME/.cache}/blockd/qemu-source
found() { find "$cache" -maxdepth 1 -type d -name 'qemu-*' 2>/dev/null | sort | tail -n 1; }
if [ -n "$(found)" ]; then
	found
	exit 0
fi
command -v apt-get >/dev/null && command -v dpkg-source >/dev/null || {
	echo 'qemu-source: needs apt-get and dpkg-source (package dpkg-dev), or QEMU_SOURCE' >&2
	exit 1
}
mkdir -p "$cache"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/get"
apt-get indextargets --format "deb-src \$(SITE) \$(RELEASE) \$(COMPONENT)" 'Created-By: Packages' | sort -u >"$work/sources.list"
own="-o Dir::Etc::SourceList=$work/sources.list -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists=$work/lists -o APT::Sandbox::User=root"
# shellcheck disable=SC2086 # these are several words
apt-get $own -qq update >&2
# shellcheck disable=SC2086
(cd "$work/get" && apt-get $own -qq source qemu >&2)
folder=$(find "$work/get" -maxdepth 1 -type d -name 'qemu-*' | head -n 1)
mv "$folder" "$cache/"
found
