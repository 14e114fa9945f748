//go:build !blockddebug

package ioengine

func poison([]byte) {}
