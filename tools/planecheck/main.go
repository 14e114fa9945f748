package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

func main() {
	tags := flag.String("tags", "", "build tags, as for go build")
	record := flag.String("any", "", "the file with the number of functions that may be any")
	flag.Parse()
	dir := "."
	if flag.NArg() > 0 {
		dir = flag.Arg(0)
	}
	r, err := run(dir, *tags)
	if err != nil {
		fmt.Fprintln(os.Stderr, "planecheck:", err)
		os.Exit(1)
	}
	for _, f := range r.findings {
		fmt.Println(f)
	}
	fmt.Printf("planecheck: %d findings; %d any (%d in all), %d global, %d io, %d blocking\n",
		len(r.findings), r.any, r.counts["any"], r.counts["global"], r.counts["io"], r.counts["blocking"])
	failed := len(r.findings) > 0
	if *record != "" {
		if err := compare(*record, r.any); err != nil {
			fmt.Println("planecheck:", err)
			failed = true
		}
	}
	if failed {
		os.Exit(1)
	}
}

// run checks the module in dir.
func run(dir, tags string) (*result, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	p, err := load(abs, tags)
	if err != nil {
		return nil, err
	}
	return check(build(p, readMarks(p))), nil
}

// compare holds the number of functions that are any at most at the recorded
// one.
func compare(file string, n int) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	most, err := strconv.Atoi(strings.TrimSpace(string(text)))
	switch {
	case err != nil:
		return err
	case n > most:
		return fmt.Errorf("%d functions are any, %d may be: say of new ones where they run, or why not in %s", n, most, file)
	case n < most:
		fmt.Printf("planecheck: write %d to %s, so that it stays so\n", n, file)
	}
	return nil
}
