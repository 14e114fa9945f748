#!/bin/sh
# Prints the folder of the distribution's QEMU source package, unpacked; fetches it into a cache outside the
# tree when it is not there. The machine's package sources stay as they are: a list of its own, made from
# theirs, has what apt-get needs for source packages. Fetching needs no privilege.
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
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/get"
own="-o Dir::State::Lists=$work/lists -o Dir::Cache=$work/cache -o APT::Sandbox::User=root"

# sources OPTION...: the lists of packages that apt-get has, as lines about source packages.
sources() {
	apt-get "$@" indextargets --format "deb-src \$(SITE) \$(RELEASE) \$(COMPONENT)" 'Created-By: Packages' | sort -u
}
sources >"$work/sources.list"
if [ ! -s "$work/sources.list" ]; then
	# It tells only of lists that it has fetched. One source that cannot be had must not keep the others away.
	# shellcheck disable=SC2086 # these are several words
	apt-get $own -qq update >&2 || true
	# shellcheck disable=SC2086
	sources $own >"$work/sources.list"
fi
own="$own -o Dir::Etc::SourceList=$work/sources.list -o Dir::Etc::SourceParts=/dev/null"
# shellcheck disable=SC2086
apt-get $own -qq update >&2 || true
# shellcheck disable=SC2086
(cd "$work/get" && apt-get $own -qq source qemu >&2)
folder=$(find "$work/get" -maxdepth 1 -type d -name 'qemu-*' | head -n 1)
[ -n "$folder" ] || {
	echo 'qemu-source: the package has no folder qemu-VERSION' >&2
	exit 1
}
# Whoever else fetches it meanwhile moves the same; a folder is there whole or not at all.
whole=$(mktemp -d "$cache/.whole.XXXXXX")
mv "$folder" "$whole/"
mv -T "$whole/$(basename "$folder")" "$cache/$(basename "$folder")" 2>/dev/null || rm -rf "$whole"
rmdir "$whole" 2>/dev/null || true
found
