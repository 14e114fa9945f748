package qcow2

import (
	"context"
	"encoding/binary"
	"syscall"

	"blockd/blockgraph"
	"blockd/formats/luks"
	"blockd/qapi"
)

// Encrypted images (specification: "crypt_method", "Full disk encryption header
// pointer", "Data encryption"). Guest clusters are encrypted sector by sector;
// metadata, compressed clusters and stored bitmaps are not. With LUKS the
// number of a sector is its place on storage, with the older method it is the
// guest's. So a cluster that moves is encrypted anew: nothing may copy the
// stored bytes of one.
//
// What a place that was never written holds is no zeroes to the guest: new
// clusters are written whole, and preallocated ones read as zeroes by their
// entries.
//
// A write that is to be compressed is stored encrypted instead: compressed
// clusters would be in the clear (the field stores them so, and what it stored
// is read).

// Values of the header's crypt_method.
const (
	cryptNone = 0
	cryptAES  = 1
	cryptLUKS = 2
)

// cryptoExt points to the LUKS header in the image.
type cryptoExt struct {
	present bool
	offset  uint64 // bytes, a multiple of the cluster size
	length  uint64 // bytes
}

const cryptoExtLen = 16

func (e *extensions) parseCrypto(h *header, data []byte) error {
	if h.cryptMethod != cryptLUKS {
		return errHeader("CRYPTO header extension only expected with LUKS encryption method")
	}
	if len(data) != cryptoExtLen {
		return errHeader("CRYPTO header extension size %d, but expected size %d", len(data), cryptoExtLen)
	}
	x := cryptoExt{present: true, offset: binary.BigEndian.Uint64(data), length: binary.BigEndian.Uint64(data[8:])}
	if x.offset&uint64(h.clusterSize-1) != 0 {
		return errHeader("Encryption header offset '%d' is not a multiple of cluster size '%d'", x.offset, h.clusterSize)
	}
	if x.offset >= maxHostOffset || x.length > maxHostOffset {
		return errHeader("Encryption header at offset '%d' of %d bytes is out of bounds", x.offset, x.length)
	}
	e.crypto = x
	return nil
}

// setCrypto makes the extension of a new image.
func (e *extensions) setCrypto(offset, length int64) {
	e.crypto = cryptoExt{present: true, offset: uint64(offset), length: uint64(length)}
	data := binary.BigEndian.AppendUint64(nil, uint64(offset))
	e.keep(extCrypto, binary.BigEndian.AppendUint64(data, uint64(length)))
}

// encryption is how an image's guest clusters are encrypted.
type encryption struct {
	*luks.Cipher
	volume *luks.Volume // nil: the older method
	at     cryptoExt    // where the volume's header is
}

// sectorOf is the number of the sector of guest byte off, stored at host.
func (c *encryption) sectorOf(off, host int64) uint64 {
	if c.volume == nil {
		return uint64(off) / luks.SectorSize
	}
	return uint64(host) / luks.SectorSize
}

// keyHolder is what opens an image, if it can open encrypted ones.
type keyHolder interface {
	//blockd:blocking
	openCrypt(ctx context.Context, h *header, ext *extensions, o *qapi.BlockdevOptions) (*encryption, error)
}

// checkCrypt holds that options fit the image.
func (h *header) checkCrypt(o *qapi.BlockdevOptions) error {
	var given qapi.BlockdevQcow2EncryptionFormat
	if o.Qcow2 != nil && o.Qcow2.Encrypt != nil {
		given = o.Qcow2.Encrypt.Format
	}
	has := qapi.BlockdevQcow2EncryptionFormatAES
	switch h.cryptMethod {
	case cryptNone:
		if given != "" {
			return errHeader("No encryption in image header, but options specified format '%s'", given)
		}
		return nil
	case cryptLUKS:
		has = qapi.BlockdevQcow2EncryptionFormatLUKS
	}
	if given != "" && given != has {
		return errHeader("Header reported '%s' encryption format but options specify '%s'", has, given)
	}
	if h.size%sector != 0 {
		return errHeader("The size of an encrypted image must be a multiple of %d bytes", sector)
	}
	return nil
}

// openCrypt gets the key of an encrypted image; f is the image's file. Nil: it is
// not encrypted.
//
//blockd:blocking
func openCrypt(ctx context.Context, f func() storage, h *header, ext *extensions, o *qapi.BlockdevOptions, keys luks.Config) (*encryption, error) {
	var secret *string
	if o.Qcow2 != nil && o.Qcow2.Encrypt != nil {
		if e := o.Qcow2.Encrypt; e.LUKS != nil {
			secret = e.LUKS.KeySecret
		} else if e.AES != nil {
			secret = e.AES.KeySecret
		}
	}
	switch {
	case h.cryptMethod == cryptNone:
		return nil, nil
	case h.cryptMethod == cryptAES:
		return openAES(secret, keys)
	case !ext.crypto.present:
		return nil, errNoCryptHeader(h)
	}
	v, err := luks.Open(ctx, cryptStore{f, ext.crypto}, secret, "encrypt.", keys)
	if err != nil {
		return nil, err
	}
	return &encryption{v.Cipher, v, ext.crypto}, nil
}

// inspectCrypt is openCrypt for who has no key and reads no guest data.
//
//blockd:blocking
func inspectCrypt(ctx context.Context, f func() storage, h *header, ext *extensions, keys luks.Config) (*encryption, error) {
	switch {
	case h.cryptMethod == cryptNone:
		return nil, nil
	case h.cryptMethod == cryptAES:
		return &encryption{Cipher: &luks.Cipher{}}, nil
	case !ext.crypto.present:
		return nil, errNoCryptHeader(h)
	}
	v, err := luks.Inspect(ctx, cryptStore{f, ext.crypto}, keys)
	if err != nil {
		return nil, err
	}
	return &encryption{v.Cipher, v, ext.crypto}, nil
}

func errNoCryptHeader(h *header) error {
	return errHeader("Missing CRYPTO header for crypt method %d", h.cryptMethod)
}

//blockd:blocking
func openAES(secret *string, keys luks.Config) (*encryption, error) {
	password, err := keys.Password(secret, "encrypt.")
	if err != nil {
		return nil, err
	}
	c, err := luks.NewQCowCipher(password)
	if err != nil {
		return nil, err
	}
	return &encryption{Cipher: c}, nil
}

// cryptStore is the LUKS header within an image.
type cryptStore struct {
	file func() storage
	at   cryptoExt
}

func (s cryptStore) access(off int64, p []byte, f func(off int64, p []byte) error) error {
	if uint64(off)+uint64(len(p)) > s.at.length {
		return blockgraph.Errorf(syscall.EINVAL, "Request for data outside of extension header")
	}
	return cryptFailed(f(int64(s.at.offset)+off, p))
}

// cryptFailed: the field says so of writes, too.
func cryptFailed(err error) error {
	if err != nil {
		return headerError("Could not read encryption header", err)
	}
	return nil
}

func (s cryptStore) ReadAt(ctx context.Context, off int64, p []byte) error {
	return s.access(off, p, func(off int64, p []byte) error { return readAt(ctx, s.file(), off, p) })
}

func (s cryptStore) WriteAt(ctx context.Context, off int64, p []byte) error {
	return s.access(off, p, func(off int64, p []byte) error { return writeAt(ctx, s.file(), off, p) })
}

func (s cryptStore) Flush(ctx context.Context) error { return cryptFailed(s.file().Flush(ctx)) }

// amendKeys changes key slots.
//
//blockd:blocking
func (d *Driver) amendKeys(ctx context.Context, enter blockgraph.EnterFunc, e *qapi.QCryptoBlockAmendOptions, force bool) error {
	switch {
	case e == nil:
		return nil
	case d.crypt == nil:
		return blockgraph.Errorf(syscall.ENOTSUP, "image is not encrypted, can't amend")
	case e.LUKS == nil:
		return blockgraph.Errorf(syscall.ENOTSUP, "Amend can't be used to change the qcow2 encryption format")
	case d.crypt.volume == nil:
		return blockgraph.Errorf(syscall.ENOTSUP, "Only LUKS encryption options can be amended for qcow2 with blockdev-amend")
	}
	return d.crypt.volume.Amend(ctx, luks.Entering(amendStore{cryptStore{d.file, d.crypt.at}, d}, enter), e.LUKS, force)
}

// amendStore is a header that is only written while the image may be.
type amendStore struct {
	cryptStore
	d *Driver
}

func (s amendStore) WriteAt(ctx context.Context, off int64, p []byte) error {
	switch {
	case s.d.readOnly.Load() && !s.d.alone.Load():
		return cryptFailed(syscall.EPERM)
	case s.d.broken.Load():
		return cryptFailed(syscall.EIO)
	}
	return s.cryptStore.WriteAt(ctx, off, p)
}
