package qapi

// The field prints the members of an object in the order of a hash table with
// 512 buckets, newest first within a bucket. Its test suite compares text, so
// that order is part of the protocol.

const orderBuckets = 512

// keyBucket is the bucket of a key in the field's table. All arithmetic is
// modulo 2^32; bytes count as unsigned.
func keyBucket(key string) uint16 {
	v := uint32(0x238F13AF) * uint32(len(key))
	shift := uint(0)
	for i := 0; i < len(key); i++ {
		v += uint32(key[i]) << shift
		if shift += 5; shift >= 24 {
			shift -= 24
		}
	}
	return uint16((1103515243*v + 12345) % orderBuckets)
}

// keyOrder is a member's place in the output: less means earlier.
type keyOrder struct {
	bucket uint16
	index  int
}

func (a keyOrder) before(b keyOrder) bool {
	if a.bucket != b.bucket {
		return a.bucket < b.bucket
	}
	return a.index > b.index
}

func compareKeyOrder(a, b keyOrder) int {
	if a.before(b) {
		return -1
	}
	if b.before(a) {
		return 1
	}
	return 0
}
