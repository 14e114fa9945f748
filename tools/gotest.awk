# Reads the output of `go test -v`. Prints each failed package with the output of its tests, appends what
# was skipped to the file `skipped`, one "PACKAGE.TEST: REASON" a line, and leaves "PASSED FAILED" in the
# file `counts`.
#
# The name of a package stands after its tests; "=== NAME" lines say whose output follows.

function end_of_package(name, bad,    i, test) {
	if (bad) {
		print "FAIL " name
		for (i = 1; i <= lines; i++) print "    " text[i]
	}
	for (i = 1; i <= skips; i++) {
		test = skip[i]
		print name "." test ": " ((test in reason) ? reason[test] : "skipped") >> skipped
	}
	lines = 0; failures = 0; skips = 0; current = ""
	split("", reason)
}

/^=== (RUN|PAUSE|CONT|NAME)/ { current = $3; next }
/^ *--- PASS: / { passed++; next }
/^ *--- SKIP: / { skip[++skips] = $3; next }
/^ *--- FAIL: / { failed++; failures++ }
/^ +[^ ]+\.go:[0-9]+: / {
	why = $0
	sub(/^ +[^ ]+\.go:[0-9]+: /, "", why)
	reason[current] = why
}
/^ok +\t/ || /^\?/ || /\[no test files\]$/ { end_of_package($2, 0); next }
/^FAIL\t/ {
	if (failures == 0) failed++
	end_of_package($2, 1)
	next
}
/^PASS$/ || /^FAIL$/ { next }
{ text[++lines] = $0 }

END {
	if (failures || skips) end_of_package("(unfinished)", failures)
	print passed + 0, failed + 0 > counts
}
