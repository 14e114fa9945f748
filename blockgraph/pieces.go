package blockgraph

import "context"

// Piece is the longest range in bytes that a client's request to discard or zero
// does in one go: what an NBD header of 32 bits can ask for. A change of the
// graph waits for what has begun.
const Piece = 1 << 32

// InPieces has f do a range in pieces, which meet at multiples of Piece, until
// one fails or ctx ends between two.
func InPieces(ctx context.Context, off, n int64, f func(off, n int64) error) error {
	for n > 0 {
		k := n
		if k > Piece {
			k = Piece - off%Piece
		}
		if err := f(off, k); err != nil {
			return err
		}
		if off, n = off+k, n-k; n > 0 && ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}
