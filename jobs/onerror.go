package jobs

import (
	"syscall"

	"blockd/qapi"
)

const noSpace = syscall.ENOSPC

// errorAction is the table of error policies: what a job does about a failed
// request.
func errorAction(policy qapi.BlockdevOnError, nospace bool) qapi.BlockErrorAction {
	switch policy {
	case qapi.BlockdevOnErrorStop:
		return qapi.BlockErrorActionStop
	case qapi.BlockdevOnErrorIgnore:
		return qapi.BlockErrorActionIgnore
	case qapi.BlockdevOnErrorEnospc, qapi.BlockdevOnErrorAuto:
		if nospace {
			return qapi.BlockErrorActionStop
		}
	}
	return qapi.BlockErrorActionReport
}
