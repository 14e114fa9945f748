# blockd: build, judge and show. Every target works from a fresh clone with Go alone; what else a target
# needs, tools/setup.sh installs when it may, or names in one line.

GO ?= go
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

# The version is handed over by the linker; asking git again, as go build would, fails in a checkout of
# another owner.
GOFLAGS_BUILD := -trimpath -buildvcs=false -ldflags '-X main.version=$(VERSION)'

.PHONY: all build build-test adapter differential iotests-qemu man deb lint test test-all test-console demo bench clean

all: build

build:
	CGO_ENABLED=0 $(GO) build $(GOFLAGS_BUILD) -o bin/blockd ./cmd/blockd

# The manual pages, in bin/package/man.
man:
	rm -rf bin/package/man
	$(GO) run $(GOFLAGS_BUILD) -tags manual ./cmd/blockd manual bin/package/man

# The Debian package, in bin/. Its version is that of Debian: it begins with a digit, and grows.
DEB_VERSION := 0.0+git$(shell git rev-list --count HEAD 2>/dev/null || echo 0).$(VERSION)

deb: build man
	gzip -9n bin/package/man/*
	for shell in bash zsh fish; do bin/blockd completion $$shell >bin/package/completion.$$shell || exit 1; done
	rm -f bin/blockd_*.deb
	VERSION='$(subst -,.,$(DEB_VERSION))' ARCH='$(shell $(GO) env GOARCH)' $(GO) tool -modfile=tools/deb.mod nfpm package --config packaging/nfpm.yaml --packager deb --target bin/

# The binary that the Python tests run: assertions on, and the race detector where a C compiler is.
build-test:
	@GO='$(GO)' sh tools/build-test.sh $(GOFLAGS_BUILD)

# The program that lets QEMU's own test-suite run against blockd.
adapter:
	CGO_ENABLED=0 $(GO) build $(GOFLAGS_BUILD) -o bin/qemu-adapter ./iotests/adapter

# QEMU's own test-suite, against the records in iotests/qemu_suite*.txt; RECORD=1 writes what was seen there and
# to the documentation.
iotests-qemu: adapter build
	/usr/bin/python3 iotests/qemu_suite.py $(if $(RECORD),--record) $(TESTS)
	$(if $(RECORD),/usr/bin/python3 iotests/qemu_suite.py --table)

# Random sequences against the rival; SEEDS is how many, FIRST the first seed.
differential: build-test
	/usr/bin/python3 -m iotests.differential --seeds $(or $(SEEDS),200) --first $(or $(FIRST),0) --keep-going --coverage

lint:
	@GO='$(GO)' sh tools/lint.sh

test:
	@GO='$(GO)' sh tools/test.sh

# The same with the long samples of the randomised tests.
test-all:
	@GO='$(GO)' BLOCKD_TEST_ALL=1 sh tools/test.sh

# The console's own tests, of which most need a browser.
test-console:
	@sh tools/setup.sh qemu console; GO='$(GO)' sh tools/test-console.sh

demo:
	@GO='$(GO)' sh tools/demo.sh

bench: build
	@if [ -x bench/run ]; then sh tools/setup.sh python qemu rival nbd fio; bench/run --rounds 15; \
	else echo 'bench: bench/run is not there' >&2; exit 1; fi

clean:
	rm -rf bin
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
