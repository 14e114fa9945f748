#!/bin/sh
# The whole judgement: vet, the border between the planes, unit tests, the Python tests against a binary built for tests,
# those of QEMU's suite that must pass, and the sample of the comparison with the rival.
#
# Without a C compiler it runs without the race detector, without a tool it runs the rest. The end of its
# output is a list of what did not run, by name, and the line `N passed, N failed, N skipped` for
# everything together. With REQUIRE_ALL=1 anything that did not run is an error, with BLOCKD_TEST_ALL=1
# randomised tests take their long samples.
set -u
cd "$(dirname "$0")/.."
: "${GO:=go}" "${REQUIRE_ALL:=0}" "${BLOCKD_TEST_ALL:=0}"
export GOTRACEBACK=all GORACE=atexit_sleep_ms=0
# As make builds, so that nothing is compiled once for the tests and once for the programs.
export GOFLAGS="${GOFLAGS:-} -trimpath -buildvcs=false"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

passed=0 failed=0
: >"$work/skipped"

# skip NAME: REASON: one thing that did not run.
skip() { echo "$*" >>"$work/skipped"; }

# verdict NAME STATUS: counts one step that passes or fails as a whole.
verdict() {
	if [ "$2" = 0 ]; then
		passed=$((passed + 1))
	else
		failed=$((failed + 1))
		echo "FAIL $1"
	fi
}

sh tools/setup.sh python qemu rival nbd fio tls compiler package emulator goqemu console source
sh tools/qemu-source.sh >/dev/null 2>&1 & # for later; the step that needs it says why it is not there
source_pid=$!

# Without cgo, as the programs are built. The tests are compiled without vet's share of `go test`: all that it
# looks at is looked at here.
echo "== vet and planecheck"
CGO_ENABLED=0 "$GO" run ./tools/planecheck -any tools/planecheck/any.txt >"$work/planecheck" 2>&1 &
planecheck_pid=$!
CGO_ENABLED=0 "$GO" vet ./...
verdict "go vet" $?
# shellcheck disable=SC2046 # these are several packages
CGO_ENABLED=0 "$GO" vet -tags blockddebug $(grep -rl --include='*.go' '^//go:build.*blockddebug' . | xargs -n 1 dirname | sort -u)
verdict "go vet -tags blockddebug" $?
wait "$planecheck_pid"
planecheck_status=$?
cat "$work/planecheck"
verdict "planecheck" $planecheck_status

race=-race cgo=1
if ! echo 'int main(void) { return 0; }' | "${CC:-cc}" -xc -o /dev/null - 2>/dev/null; then
	race='' cgo=0
	skip "race detector: needs a C compiler"
fi

# Two packages at a time with two tests each keep two cores busy and leave the timing tests air.
echo "== unit tests ${race:-(without the race detector)}"
limit=20m
[ "$BLOCKD_TEST_ALL" != 1 ] || limit=4h
CGO_ENABLED=$cgo "$GO" test -v -vet=off $race -tags blockddebug -p 2 -parallel 4 -timeout $limit ./... >"$work/unit" 2>&1
unit_status=$?
awk -v skipped="$work/skipped" -v counts="$work/unit-counts" -f tools/gotest.awk "$work/unit"
read -r unit_passed unit_failed <"$work/unit-counts"
passed=$((passed + unit_passed)) failed=$((failed + unit_failed))
if [ "$unit_status" != 0 ] && [ "$unit_failed" = 0 ]; then
	verdict "go test" "$unit_status"
	tail -n 40 "$work/unit"
fi

# outcome NAME STATUS FILE: counts a step that lists what it skips as lines `SKIP NAME: REASON` and ends with
# the line `N passed, N failed, N skipped`.
outcome() {
	grep -v '^SKIP ' "$3"
	sed -n 's/^SKIP //p' "$3" >>"$work/skipped"
	last=$(tail -n 1 "$3")
	case $last in
	*' passed, '*' failed, '*' skipped')
		step_failed=${last#* passed, }
		step_failed=${step_failed%% failed,*}
		passed=$((passed + ${last%% passed,*})) failed=$((failed + step_failed))
		[ "$2" = 0 ] || [ "$step_failed" != 0 ] || verdict "$1" "$2"
		;;
	*) verdict "$1" 1 ;;
	esac
}

echo "== Python tests"
scale=${IOTESTS_TIMEOUT_SCALE:-3}
if ! command -v /usr/bin/python3 >/dev/null; then
	skip "iotests: needs python3"
	skip "QEMU's suite: needs python3"
	skip "differential sample: needs python3"
elif ! make -s -j3 build build-test adapter; then
	verdict "make build build-test adapter" 1
else
	IOTESTS_TIMEOUT_SCALE=$scale DAEMON=bin/blockd-test /usr/bin/python3 -m iotests --jobs 3 >"$work/iotests" 2>&1
	outcome iotests $? "$work/iotests"

	echo "== QEMU's suite"
	wait "$source_pid"
	IOTESTS_TIMEOUT_SCALE=$scale /usr/bin/python3 iotests/qemu_suite.py --required --jobs 3 >"$work/suite" 2>&1
	outcome "QEMU's suite" $? "$work/suite"

	echo "== differential sample"
	if ! command -v qemu-storage-daemon >/dev/null || ! command -v qemu-img >/dev/null; then
		skip "differential sample: needs qemu-storage-daemon and qemu-img"
	elif ! /usr/bin/python3 -c 'import nbd' 2>/dev/null; then
		skip "differential sample: needs python3-libnbd"
	else
		IOTESTS_TIMEOUT_SCALE=$scale /usr/bin/python3 -m iotests.differential --sample >"$work/differential" 2>&1
		outcome "differential sample" $? "$work/differential"
	fi
fi

echo "== the console, by itself and in a browser"
GO=$GO sh tools/test-console.sh >"$work/console"
console_status=$?
sed -n '/^not ok/,/^  \.\.\./p; /^# [0-9]* nodes:/p' "$work/console"
sed -n 's/^SKIP //p' "$work/console" >>"$work/skipped"
console_passed=$(sed -n 's/^# pass //p' "$work/console" | awk '{ n += $1 } END { print n + 0 }')
console_failed=$(sed -nE 's/^# (fail|cancelled) //p' "$work/console" | awk '{ n += $1 } END { print n + 0 }')
passed=$((passed + console_passed)) failed=$((failed + console_failed))
[ "$console_status" = 0 ] || [ "$console_failed" != 0 ] || verdict "the console" 1

echo "== the packages"
if ! command -v dpkg >/dev/null || ! command -v systemd-analyze >/dev/null || ! command -v man >/dev/null; then
	skip "the packages: needs dpkg, systemd-analyze and man"
elif [ "$(id -u)" != 0 ]; then
	skip "the packages: dpkg and chroot want root"
else
	make -s deb >"$work/deb" 2>&1 && /usr/bin/python3 -m unittest -q packaging.test_package >>"$work/deb" 2>&1
	deb_status=$?
	verdict "the packages" $deb_status
	[ "$deb_status" = 0 ] || tail -n 40 "$work/deb"
fi

echo "== the bench's own tests"
if command -v /usr/bin/python3 >/dev/null; then
	/usr/bin/python3 -m unittest discover -q -s bench/tests -t .
	verdict "bench's own tests" $?
fi

skipped=$(wc -l <"$work/skipped" | tr -d ' ')
echo "== did not run: $skipped"
sed 's/^/  /' "$work/skipped"
echo "$passed passed, $failed failed, $skipped skipped"

[ "$failed" = 0 ] || exit 1
[ "$REQUIRE_ALL" != 1 ] || [ "$skipped" = 0 ] || exit 1
