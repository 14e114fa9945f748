module counted

go 1.26
