package picture

import (
	"cmp"
	"slices"
)

// The layout is layered, after Sugiyama: each box in the layer of its longest
// way from the top, arrows over several layers by way of dummies, the order
// within layers by the median of the neighbours in sweeps down and up, and
// places by the mean of the neighbours, pushed apart where they overlap. Block
// graphs have no cycles; an arrow that would make one is left out of the
// layering and still drawn.

// sweeps is how often the orders are improved.
const sweeps = 8

type point struct{ x, y float64 }

type place struct{ x, y, w, h float64 }

// layout is where everything is. places and routes have the order of the
// graph's boxes and arrows.
type layout struct {
	width, height float64
	places        []place
	routes        [][]point
}

// spot is a box or a dummy in its layer.
type spot struct {
	box      int // -1: a dummy
	x, w, h  float64
	up, down []*spot
	order    float64
}

func arrange(g *Graph) *layout {
	index := make(map[string]int, len(g.Boxes))
	for i, b := range g.Boxes {
		index[b.ID] = i
	}
	rank := ranks(g, index)
	layers := make([][]*spot, slices.Max(append(slices.Clone(rank), 0))+1)
	spots := make([]*spot, len(g.Boxes))
	for i, b := range g.Boxes {
		s := &spot{box: i, w: boxWidth(b), h: 2*padding + lineHeight*float64(1+len(b.Lines))}
		spots[i] = s
		layers[rank[i]] = append(layers[rank[i]], s)
	}
	ways := make([][]*spot, len(g.Arrows))
	for i, a := range g.Arrows {
		from, to := index[a.From], index[a.To]
		way := []*spot{spots[from]}
		for r := rank[from] + 1; r < rank[to]; r++ {
			d := &spot{box: -1, w: 1}
			layers[r] = append(layers[r], d)
			way = append(way, d)
		}
		way = append(way, spots[to])
		ways[i] = way
		if rank[to] <= rank[from] {
			continue
		}
		for k := 1; k < len(way); k++ {
			way[k-1].down = append(way[k-1].down, way[k])
			way[k].up = append(way[k].up, way[k-1])
		}
	}
	orderLayers(layers)
	placeLayers(layers)
	return draw(g, layers, ways)
}

func boxWidth(b Box) float64 {
	longest := len([]rune(b.Title))
	for _, line := range b.Lines {
		longest = max(longest, len([]rune(line)))
	}
	return max(leastWidth, 2*padding+charWidth*float64(longest))
}

// ranks returns each box's layer.
func ranks(g *Graph, index map[string]int) []int {
	down := make([][]int, len(g.Boxes))
	for _, a := range g.Arrows {
		down[index[a.From]] = append(down[index[a.From]], index[a.To])
	}
	const fresh, open, closed = 0, 1, 2
	state := make([]int, len(g.Boxes))
	var sorted []int // children before parents
	var visit func(i int)
	visit = func(i int) {
		state[i] = open
		for k, c := range down[i] {
			switch state[c] {
			case fresh:
				visit(c)
			case open:
				down[i][k] = i // closes a circle
			}
		}
		state[i] = closed
		sorted = append(sorted, i)
	}
	for i := range g.Boxes {
		if state[i] == fresh {
			visit(i)
		}
	}
	rank := make([]int, len(g.Boxes))
	for _, i := range slices.Backward(sorted) {
		for _, c := range down[i] {
			if c != i {
				rank[c] = max(rank[c], rank[i]+1)
			}
		}
	}
	return rank
}

func orderLayers(layers [][]*spot) {
	for _, layer := range layers {
		number(layer)
	}
	for sweep := range sweeps {
		for k := range layers {
			layer, near := layers[k], func(s *spot) []*spot { return s.up }
			if sweep%2 == 1 {
				layer, near = layers[len(layers)-1-k], func(s *spot) []*spot { return s.down }
			}
			want := make(map[*spot]float64, len(layer))
			for _, s := range layer {
				want[s] = median(near(s), s.order)
			}
			slices.SortStableFunc(layer, func(a, b *spot) int { return cmp.Compare(want[a], want[b]) })
			number(layer)
		}
	}
}

func number(layer []*spot) {
	for i, s := range layer {
		s.order = float64(i)
	}
}

func median(near []*spot, otherwise float64) float64 {
	if len(near) == 0 {
		return otherwise
	}
	orders := make([]float64, len(near))
	for i, s := range near {
		orders[i] = s.order
	}
	slices.Sort(orders)
	return (orders[(len(orders)-1)/2] + orders[len(orders)/2]) / 2
}

// placeLayers sets the x of all spots: of their centres.
func placeLayers(layers [][]*spot) {
	for _, layer := range layers {
		x := 0.0
		for _, s := range layer {
			s.x = x + s.w/2
			x += s.w + gapX
		}
	}
	for sweep := range sweeps {
		for k := range layers {
			layer := layers[k]
			if sweep%2 == 1 {
				layer = layers[len(layers)-1-k]
			}
			for _, s := range layer {
				near := s.up
				if sweep%2 == 1 {
					near = s.down
				}
				if len(near) > 0 {
					sum := 0.0
					for _, n := range near {
						sum += n.x
					}
					s.x = sum / float64(len(near))
				}
			}
			spread(layer)
		}
	}
}

// spread pushes neighbours apart, half to each side on the whole.
func spread(layer []*spot) {
	if len(layer) == 0 {
		return
	}
	before := 0.0
	for _, s := range layer {
		before += s.x
	}
	for i := 1; i < len(layer); i++ {
		a, b := layer[i-1], layer[i]
		b.x = max(b.x, a.x+(a.w+b.w)/2+gapX)
	}
	after := 0.0
	for _, s := range layer {
		after += s.x
	}
	for _, s := range layer {
		s.x -= (after - before) / float64(len(layer))
	}
}

func draw(g *Graph, layers [][]*spot, ways [][]*spot) *layout {
	l := &layout{places: make([]place, len(g.Boxes)), routes: make([][]point, len(g.Arrows))}
	left, right := 0.0, 0.0
	for _, layer := range layers {
		for _, s := range layer {
			left, right = min(left, s.x-s.w/2), max(right, s.x+s.w/2)
		}
	}
	y := margin
	tops := map[*spot]float64{}
	for _, layer := range layers {
		tallest := 0.0
		for _, s := range layer {
			tallest = max(tallest, s.h)
		}
		for _, s := range layer {
			s.x += margin - left
			tops[s] = y + (tallest-s.h)/2
			if s.box >= 0 {
				l.places[s.box] = place{s.x - s.w/2, tops[s], s.w, s.h}
			}
		}
		y += tallest + gapY
	}
	l.width, l.height = right-left+2*margin, y-gapY+margin
	for i, way := range ways {
		first, last := way[0], way[len(way)-1]
		route := []point{{first.x, tops[first] + first.h}}
		for _, s := range way[1 : len(way)-1] {
			route = append(route, point{s.x, tops[s]})
		}
		l.routes[i] = append(route, point{last.x, tops[last]})
	}
	return l
}
