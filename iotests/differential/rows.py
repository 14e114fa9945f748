"""
The errors that the field knows, by the rows of its table, as far as a storage daemon gives them to sequences
like these. A `*` stands for anything. Left out are those that another process, another user or another
version has to give: 3's `oob`, 23's other process, 35, 40's inconsistent bitmaps, 46, 48's devices, 52.
"""

from __future__ import annotations

import re

_ROWS = {
    "1": ("The command * has not been found",),
    "2": ("Expecting capabilities negotiation with 'qmp_capabilities'",),
    "3": ("Capabilities negotiation is already complete, command ignored",),
    "4": ("Parameter '*' is missing",),
    "5": ("Parameter '*' is unexpected",),
    "6": ("Invalid parameter type for '*', expected: *",),
    "7": ("Parameter '*' does not accept value '*'",),
    "8": ("Invalid parameter type for '*', expected: BlockdevRef",),
    "9": (
        "Parameter '*' expects a value in range *",
        "Parameter 'granularity' expects a power of 2",
        "Parameter 'speed' expects a non-negative value",
        "Parameter 'size' expects a >0 size",
    ),
    "10": ("QMP input member '*' is unexpected",),
    "11": ("QMP input must be a JSON object", "JSON parse error, *", "JSON nesting depth limit exceeded"),
    "12": ("QMP input member 'execute' must be a string", "QMP input member 'arguments' must be an object"),
    "13": ("Cannot find device='*' nor node-name='*'",),
    "14": ("Failed to find node with node-name='*'",),
    "15": ("Node '*' not found",),
    "16": ("Device '*' not found",),
    "17": ("DeviceNotFound: Device '*' not found",),
    "18": ("'node-name' must be specified for the root node",),
    "19": ("Invalid node-name: '*'", "Node name too long"),
    "20": ("Duplicate nodes with node-name='*'",),
    "21": ("Could not open '*': No such file or directory",),
    "22": ("Image is not in qcow2 format",),
    "23": ('*Failed to get "write" lock', '*Failed to get shared "write" lock'),
    "24": ("*Permission conflict on node *",),
    "25": ("Node '*' is busy: block device is in use by block job: *",),
    "26": ("Node '*' is busy: node is used as backing hd of '*'",),
    "27": ("Block device * is in use", "Node * is in use"),
    "28": ("Device '(null)' is in use",),
    "29": ("Need a root block node",),
    "30": ("*Block node is read-only", "Image is read-only", "Read-only block node '*' cannot support read-write users"),
    "31": ("Invalid job ID '*'", "Job ID '*' already in use"),
    "32": ("Job not found", "DeviceNotActive: Block job '*' not found"),
    "33": ("Job '*' in state '*' cannot accept command verb '*'",),
    "34": ("Job is already paused", "Can't resume a job that was not paused"),
    "36": (
        "Node '*' is not a backing image of '*'",
        "'*' is not in this backing file chain",
        "Top image file * not found",
        "cannot commit an image into itself",
        "'base-node' and 'base' are mutually exclusive",
        "'base' and 'base-node' cannot be specified at the same time",
    ),
    "37": ("Can't mirror node into itself", "Sync mode 'incremental' not supported", "*Source and target image have different sizes"),
    "38": (
        "Source and target cannot be the same",
        "Source and target image have different sizes",
        "Bitmap sync mode must be given when providing a bitmap",
        "Bitmap sync mode must be 'on-success' when using sync mode 'incremental'",
        "must provide a valid bitmap name for 'incremental' sync mode",
        "Bitmap '*' could not be found",
        "sync mode 'none' does not produce meaningful bitmap outputs",
        "Cannot specify bitmap sync mode without a bitmap",
        "Compression is not supported for this drive ",
        "max-workers must be between 1 and 2147483647",
    ),
    "39": (
        "Dirty bitmap '*' not found",
        "Bitmap already exists: *",
        "Bitmap name cannot be empty",
        "Granularity must be power of 2 and at least 512",
        "Can't store persistent bitmaps to *",
    ),
    "40": ("Bitmap '*' is currently in use by another operation and cannot be used",),
    "41": (
        "The overlay does not support backing images",
        "The overlay already has a backing image",
        "The overlay is already in use",
        "New overlay node-name missing",
    ),
    "42": (
        "Snapshot with name '*' already exists on device '*'",
        "Name is empty",
        "Name or id must be provided",
        "Snapshot with id '*' and name '*' does not exist on device '*'",
    ),
    "43": ("node-name not specified", "Cannot change the option '*'"),
    "44": (
        "Invalid block export id",
        "Block export id '*' is already in use",
        "Export '*' is not found",
        "Cannot export read-only node as writable",
        'iothread "*" not found',
        "Bitmap '*' is not found",
        "Enabled bitmap '*' incompatible with readonly export",
    ),
    "45": ("NBD server not running", "NBD server already running", "NBD server already has export named '*'"),
    "47": (
        "attempt to add duplicate property '*' to object (type 'container')",
        "Parameter 'qom-type' does not accept value 'zz'",
        "Parameter 'id' expects an identifier",
        "object '*' not found",
        "object '*' is in use, can not be deleted",
        "Throttle group '*' does not exist",
    ),
    "48": ("DeviceNotFound: Device '*' not found",),
    "49": (
        "Transaction aborted using Abort action",
        "Action '*' does not support Transaction property completion-mode = grouped",
    ),
    "50": ("The node * does not support adding a child", "Cannot find iothread *"),
    "51": ("Image size must be a multiple of 512 bytes",),
    "53": ("setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",),
}


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, text.split("*"))), re.DOTALL)


# (row, text, its pattern); classes other than GenericError stand before their texts.
ERRORS = [(row, text, _pattern(text)) for row, texts in _ROWS.items() for text in texts]
