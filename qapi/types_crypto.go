package qapi

// Options and descriptions of encrypted images: LUKS, as a format of its own
// and within qcow2, and the older encryption of qcow2.

// QCryptoCipherAlgorithm is a cipher with the length of its key in bits.
type QCryptoCipherAlgorithm string

// Values of QCryptoCipherAlgorithm.
const (
	QCryptoCipherAlgorithmAES128     QCryptoCipherAlgorithm = "aes-128"
	QCryptoCipherAlgorithmAES192     QCryptoCipherAlgorithm = "aes-192"
	QCryptoCipherAlgorithmAES256     QCryptoCipherAlgorithm = "aes-256"
	QCryptoCipherAlgorithmCast5128   QCryptoCipherAlgorithm = "cast5-128"
	QCryptoCipherAlgorithmTwofish128 QCryptoCipherAlgorithm = "twofish-128"
	QCryptoCipherAlgorithmTwofish192 QCryptoCipherAlgorithm = "twofish-192"
	QCryptoCipherAlgorithmTwofish256 QCryptoCipherAlgorithm = "twofish-256"
)

// QAPIEnum lists the values that blockd accepts.
func (QCryptoCipherAlgorithm) QAPIEnum() []string {
	return []string{"aes-128", "aes-192", "aes-256", "cast5-128", "twofish-128", "twofish-192", "twofish-256"}
}

// QCryptoCipherMode is how a cipher is applied to what is longer than its
// block.
type QCryptoCipherMode string

// Values of QCryptoCipherMode.
const (
	QCryptoCipherModeCBC QCryptoCipherMode = "cbc"
	QCryptoCipherModeXTS QCryptoCipherMode = "xts"
)

// QAPIEnum lists the values that blockd accepts.
func (QCryptoCipherMode) QAPIEnum() []string { return []string{"cbc", "xts"} }

// QCryptoIVGenAlgorithm is how a sector's number becomes its initialisation
// vector.
type QCryptoIVGenAlgorithm string

// Values of QCryptoIVGenAlgorithm.
const (
	QCryptoIVGenAlgorithmPlain   QCryptoIVGenAlgorithm = "plain"
	QCryptoIVGenAlgorithmPlain64 QCryptoIVGenAlgorithm = "plain64"
	QCryptoIVGenAlgorithmEssiv   QCryptoIVGenAlgorithm = "essiv"
)

// QAPIEnum lists the values that blockd accepts.
func (QCryptoIVGenAlgorithm) QAPIEnum() []string { return []string{"plain", "plain64", "essiv"} }

// QCryptoHashAlgorithm is a hash function.
type QCryptoHashAlgorithm string

// Values of QCryptoHashAlgorithm.
const (
	QCryptoHashAlgorithmMD5       QCryptoHashAlgorithm = "md5"
	QCryptoHashAlgorithmSHA1      QCryptoHashAlgorithm = "sha1"
	QCryptoHashAlgorithmSHA224    QCryptoHashAlgorithm = "sha224"
	QCryptoHashAlgorithmSHA256    QCryptoHashAlgorithm = "sha256"
	QCryptoHashAlgorithmSHA384    QCryptoHashAlgorithm = "sha384"
	QCryptoHashAlgorithmSHA512    QCryptoHashAlgorithm = "sha512"
	QCryptoHashAlgorithmRIPEMD160 QCryptoHashAlgorithm = "ripemd160"
)

// QAPIEnum lists the values that blockd accepts.
func (QCryptoHashAlgorithm) QAPIEnum() []string {
	return []string{"md5", "sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160"}
}

// QCryptoBlockOptionsQCow are the options of qcow2's older encryption.
type QCryptoBlockOptionsQCow struct {
	// Id of the secret with the password. Cannot be left out where the data is to
	// be read or written.
	KeySecret *string `qapi:"key-secret"`
}

// QCryptoBlockOptionsLUKS are the options of an existing LUKS volume.
type QCryptoBlockOptionsLUKS struct {
	// Id of the secret with a password of one of the key slots. Cannot be left
	// out where the data is to be read or written.
	KeySecret *string `qapi:"key-secret"`
}

// QCryptoBlockCreateOptionsLUKS describe a new LUKS volume.
type QCryptoBlockCreateOptionsLUKS struct {
	QCryptoBlockOptionsLUKS
	// Default aes-256.
	CipherAlg *QCryptoCipherAlgorithm `qapi:"cipher-alg"`
	// Default xts.
	CipherMode *QCryptoCipherMode `qapi:"cipher-mode"`
	// Default plain64.
	IVGenAlg *QCryptoIVGenAlgorithm `qapi:"ivgen-alg"`
	// Only essiv needs one. Default for essiv: sha256.
	IVGenHashAlg *QCryptoHashAlgorithm `qapi:"ivgen-hash-alg"`
	// Of the derivation of keys. Default sha256.
	HashAlg *QCryptoHashAlgorithm `qapi:"hash-alg"`
	// Milliseconds of computing time that trying a password is to take on this
	// machine. Default 2000.
	IterTime *int64 `qapi:"iter-time"`
}

// QCryptoBlockFormat is a kind of encryption within an image.
type QCryptoBlockFormat string

// Values of QCryptoBlockFormat.
const (
	QCryptoBlockFormatQCow QCryptoBlockFormat = "qcow"
	QCryptoBlockFormatLUKS QCryptoBlockFormat = "luks"
)

// QAPIEnum lists the values that blockd accepts.
func (QCryptoBlockFormat) QAPIEnum() []string { return []string{"qcow", "luks"} }

// QCryptoBlockCreateOptions describe the encryption of a new image.
type QCryptoBlockCreateOptions struct {
	Format QCryptoBlockFormat             `qapi:"format,discriminator"`
	QCow   *QCryptoBlockOptionsQCow       `qapi:",case=qcow"`
	LUKS   *QCryptoBlockCreateOptionsLUKS `qapi:",case=luks"`
}

// BlockdevQcow2EncryptionFormat is the kind of encryption of a qcow2 image.
type BlockdevQcow2EncryptionFormat string

// Values of BlockdevQcow2EncryptionFormat.
const (
	BlockdevQcow2EncryptionFormatAES  BlockdevQcow2EncryptionFormat = "aes"
	BlockdevQcow2EncryptionFormatLUKS BlockdevQcow2EncryptionFormat = "luks"
)

// QAPIEnum lists the values that blockd accepts.
func (BlockdevQcow2EncryptionFormat) QAPIEnum() []string { return []string{"aes", "luks"} }

// BlockdevQcow2Encryption are the options of an encrypted qcow2 image.
type BlockdevQcow2Encryption struct {
	Format BlockdevQcow2EncryptionFormat `qapi:"format,discriminator"`
	AES    *QCryptoBlockOptionsQCow      `qapi:",case=aes"`
	LUKS   *QCryptoBlockOptionsLUKS      `qapi:",case=luks"`
}

// BlockdevOptionsLUKS are the options of luks.
type BlockdevOptionsLUKS struct {
	File BlockdevRef `qapi:"file"`
	QCryptoBlockOptionsLUKS
	// A detached header. Without it the header is at the start of File.
	Header *BlockdevRef `qapi:"header"`
}

// BlockdevCreateOptionsLUKS describes a new LUKS image, written into the node
// File, or its header into Header.
type BlockdevCreateOptionsLUKS struct {
	QCryptoBlockCreateOptionsLUKS
	// Can be left out with Header, and gets the length Size then.
	File *BlockdevRef `qapi:"file"`
	// Of a detached header.
	Header *BlockdevRef `qapi:"header"`
	// Bytes of the disk; a header in File comes on top.
	Size uint64 `qapi:"size,size"`
	// Default off.
	Preallocation *PreallocMode `qapi:"preallocation"`
}

// QCryptoBlockLUKSKeyslotState is what is to become of key slots.
type QCryptoBlockLUKSKeyslotState string

// Values of QCryptoBlockLUKSKeyslotState.
const (
	QCryptoBlockLUKSKeyslotStateActive   QCryptoBlockLUKSKeyslotState = "active"
	QCryptoBlockLUKSKeyslotStateInactive QCryptoBlockLUKSKeyslotState = "inactive"
)

// QAPIEnum lists the values that blockd accepts.
func (QCryptoBlockLUKSKeyslotState) QAPIEnum() []string { return []string{"active", "inactive"} }

// QCryptoBlockAmendOptionsLUKS changes the key slots of a LUKS volume.
type QCryptoBlockAmendOptionsLUKS struct {
	// active adds a key, inactive erases keys.
	State QCryptoBlockLUKSKeyslotState `qapi:"state"`
	// Id of the secret with the password to add. With state active only, and
	// needed there.
	NewSecret *string `qapi:"new-secret"`
	// Erase the slots that have the password of this secret. With state
	// inactive only; needed there unless keyslot is given.
	OldSecret *string `qapi:"old-secret"`
	// Slot to fill or to erase, 0 to 7. Default when adding: the first free one.
	Keyslot *int64 `qapi:"keyslot"`
	// As for a new volume. With state active only.
	IterTime *int64 `qapi:"iter-time"`
	// Id of the secret with a password that is valid already. With state active
	// only. Default: the secret that the image was opened with.
	Secret *string `qapi:"secret"`
}

// QCryptoBlockAmendOptions changes the encryption of an image.
type QCryptoBlockAmendOptions struct {
	Format QCryptoBlockFormat            `qapi:"format,discriminator"`
	LUKS   *QCryptoBlockAmendOptionsLUKS `qapi:",case=luks"`
}

// BlockdevAmendOptionsLUKS is what can be changed in a LUKS image.
type BlockdevAmendOptionsLUKS struct {
	QCryptoBlockAmendOptionsLUKS
}

// BlockdevAmendOptionsQcow2 is what can be changed in a qcow2 image.
type BlockdevAmendOptionsQcow2 struct {
	Encrypt *QCryptoBlockAmendOptions `qapi:"encrypt"`
	// Beyond QEMU, which has these in qemu-img amend. Nobody else may use the node.
	XCompat        *BlockdevQcow2Version `qapi:"x-compat,features=unstable"`
	XRefcountBits  *int64                `qapi:"x-refcount-bits,features=unstable"`
	XLazyRefcounts *bool                 `qapi:"x-lazy-refcounts,features=unstable"`
	// The name that the header has; empty: none.
	XDataFile    *string `qapi:"x-data-file,features=unstable"`
	XDataFileRaw *bool   `qapi:"x-data-file-raw,features=unstable"`
}

// BlockdevAmendOptions says what to change in an image. Drivers without a
// branch cannot amend.
type BlockdevAmendOptions struct {
	Driver BlockdevDriver             `qapi:"driver,discriminator"`
	LUKS   *BlockdevAmendOptionsLUKS  `qapi:",case=luks"`
	Qcow2  *BlockdevAmendOptionsQcow2 `qapi:",case=qcow2"`
}

// XBlockdevAmendArg is the argument of x-blockdev-amend.
type XBlockdevAmendArg struct {
	JobID    string               `qapi:"job-id"`
	NodeName string               `qapi:"node-name"`
	Options  BlockdevAmendOptions `qapi:"options"`
	// Allow what may make the data unreadable. Default false.
	Force *bool `qapi:"force"`
}

// QCryptoBlockInfoLUKSSlot describes a key slot.
type QCryptoBlockInfoLUKSSlot struct {
	Active bool `qapi:"active"`
	// Of active slots only.
	Iters *int64 `qapi:"iters"`
	// Of active slots only.
	Stripes *int64 `qapi:"stripes"`
	// Bytes into the volume.
	KeyOffset int64 `qapi:"key-offset"`
}

// QCryptoBlockInfoLUKS describes a LUKS volume.
type QCryptoBlockInfoLUKS struct {
	CipherAlg    QCryptoCipherAlgorithm `qapi:"cipher-alg"`
	CipherMode   QCryptoCipherMode      `qapi:"cipher-mode"`
	IVGenAlg     QCryptoIVGenAlgorithm  `qapi:"ivgen-alg"`
	IVGenHashAlg *QCryptoHashAlgorithm  `qapi:"ivgen-hash-alg"`
	HashAlg      QCryptoHashAlgorithm   `qapi:"hash-alg"`
	// Whether the header lies in another image than the data.
	DetachedHeader bool `qapi:"detached-header"`
	// Bytes from the start of the header.
	PayloadOffset  int64                      `qapi:"payload-offset"`
	MasterKeyIters int64                      `qapi:"master-key-iters"`
	UUID           string                     `qapi:"uuid"`
	Slots          []QCryptoBlockInfoLUKSSlot `qapi:"slots"`
}

// ImageInfoSpecificQCow2Encryption describes the encryption of a qcow2 image.
type ImageInfoSpecificQCow2Encryption struct {
	Format BlockdevQcow2EncryptionFormat `qapi:"format,discriminator"`
	LUKS   *QCryptoBlockInfoLUKS         `qapi:",case=luks"`
}
