package blockgraph

import "blockd/qapi"

// MaxChain is how many nodes may lie below a node, one below the other. What
// walks down the graph takes time and memory by the length of the way.
const MaxChain = 1024

func (g *Graph) errTooDeep() error {
	return qapi.Errorf("Backing chain is longer than %d nodes", g.maxChain)
}

// tooDeep tells whether the longest way down through a link from parent to
// child would be too long.
func (tx *Tx) tooDeep(parent, child *Node) bool {
	below := tx.longest(child, (*Tx).childrenOf)
	if below+1 > tx.g.maxChain {
		return true
	}
	return tx.longest(parent, (*Tx).parentsOf)+1+below > tx.g.maxChain
}

func (tx *Tx) childrenOf(n *Node) []*Node {
	var nodes []*Node
	for _, e := range tx.State(n).Edges {
		nodes = append(nodes, e.child)
	}
	return nodes
}

func (tx *Tx) parentsOf(n *Node) []*Node {
	var nodes []*Node
	for _, e := range tx.Parents(n) {
		if e.node != nil {
			nodes = append(nodes, e.node)
		}
	}
	return nodes
}

// longest returns how many steps the longest way from a node has.
func (tx *Tx) longest(from *Node, next func(tx *Tx, n *Node) []*Node) int {
	known := map[*Node]int{}
	var walk func(n *Node) int
	walk = func(n *Node) int {
		if k, ok := known[n]; ok {
			return k
		}
		steps := 0
		for _, m := range next(tx, n) {
			steps = max(steps, 1+walk(m))
		}
		known[n] = steps
		return steps
	}
	return walk(from)
}
