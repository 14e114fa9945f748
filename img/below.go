package img

import "blockd/blockgraph"

// A target that shares its backing file with the source has what the source itself
// holds. But where the source's backing file ends before the source, the source reads
// as zeroes, and a target's backing file that is longer would show through.

// hide has the target read as zeroes where the source does since its backing file is
// too short, and the target's is not. The content of from itself is in to already.
func (s *session) hide(from, to *blockgraph.Node) (err error) {
	below, targetBelow := from.BackingChain(), to.BackingChain()
	if below == nil || targetBelow == nil {
		return nil
	}
	off, end := below.Size(), min(from.Size(), targetBelow.Size())
	if off >= end {
		return nil
	}
	source, err := s.root(from, blockgraph.PermConsistentRead)
	if err != nil {
		return err
	}
	defer s.closeRoot(source)
	target, err := s.root(to, blockgraph.PermConsistentRead|blockgraph.PermWrite)
	if err != nil {
		return err
	}
	defer s.closeRoot(target)
	for off < end {
		n, owned, err := s.own(source, off, end-off)
		if err != nil {
			return err
		}
		if !owned {
			n = min(n, zeroChunk)
			if err := target.WriteZeroes(s.ctx, off, n, blockgraph.MayUnmap); err != nil {
				return err
			}
		}
		off += n
	}
	return target.Flush(s.ctx)
}

// zeroChunk is how many bytes of zeroes are written at once: some targets write them
// as data.
const zeroChunk = 16 << 20

// own tells for how many bytes from off, at most n, the image below a root decides
// its content by itself, or does not.
func (s *session) own(root *blockgraph.Root, off, n int64) (int64, bool, error) {
	a, err := root.Enter(s.ctx)
	if err != nil {
		return 0, false, err
	}
	defer a.Leave()
	node := root.Node()
	st, depth, err := node.StatusAbove(s.ctx, node.BackingChain(), off, n, blockgraph.StatusAllocation)
	return st.N, depth != 0, err
}
