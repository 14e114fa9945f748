// Package luks is LUKS version 1: the header with its key slots, the sector
// cipher, and the format driver `luks`. qcow2 uses the first two for images
// that are encrypted within. Names are those of the LUKS On-Disk Format
// Specification, version 1.2.1.
//
// # What lies where
//
// A Header is 592 bytes with eight key slots. A slot's key material is the
// master key, split into 4000 stripes of which all are needed (afsplit.go) and
// encrypted by a key that PBKDF2 derives from a password (kdf.go). The master
// key encrypts the data, sector by sector (cipher.go). A Volume is an opened
// header; where it is stored is its Store's business.
//
// # What it promises
//
// Changes of key slots (keyslot.go) are made so that, whenever writing stops,
// the keys that were valid before or those that are valid after open the
// volume.
//
// # Who may call, what blocks
//
// Encrypting and decrypting is data plane, from any number of goroutines at a
// time, without locks and allocations. Deriving keys takes seconds on purpose:
// it is done on workers or in a job's body, ends with its context, and takes at
// most KeyTimeLimit for one attempt, whatever a hostile header says. Changes of
// one Volume take turns.
//
// # Left out
//
// Ciphers other than AES, Twofish and CAST5, modes other than xts and cbc, and LUKS version 2 are refused.
//
//blockd:io
package luks
