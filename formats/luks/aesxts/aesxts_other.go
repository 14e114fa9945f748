//go:build !amd64

package aesxts

func available() bool { return false }

// What follows is never called.

func encryptGroups(*uint32, int, *byte, *byte, int) { panic("aesxts: no instructions") }

func decryptGroups(*uint32, int, *byte, *byte, int) { panic("aesxts: no instructions") }

func (*schedule) expand([]byte) { panic("aesxts: no instructions") }

func (*schedule) invert(*schedule) { panic("aesxts: no instructions") }
