// The command line: words, types, completion.

import { test } from "node:test";
import assert from "node:assert/strict";
import { Schema, split } from "../../static/schema.js";

const infos = [
  { name: "str", "meta-type": "builtin", "json-type": "string" }, { name: "int", "meta-type": "builtin", "json-type": "int" },
  { name: "bool", "meta-type": "builtin", "json-type": "boolean" }, { name: "null", "meta-type": "builtin", "json-type": "null" },
  { name: "driver", "meta-type": "enum", members: [{ name: "file" }, { name: "qcow2" }] },
  { name: "ref", "meta-type": "alternate", members: [{ type: "str" }, { type: "options" }, { type: "null" }] },
  { name: "[str]", "meta-type": "array", "element-type": "str", "json-type": "array" },
  { name: "options", "meta-type": "object", "json-type": "object", tag: "driver", members: [{ name: "driver", type: "driver" }, { name: "node-name", type: "str", default: null }, { name: "read-only", type: "bool", default: null }],
    variants: [{ case: "file", type: "file" }, { case: "qcow2", type: "qcow2" }] },
  { name: "file", "meta-type": "object", "json-type": "object", members: [{ name: "filename", type: "str" }] },
  { name: "qcow2", "meta-type": "object", "json-type": "object", members: [{ name: "file", type: "ref" }, { name: "l2-cache-size", type: "int", default: null }, { name: "names", type: "[str]", default: null }] },
  { name: "empty", "meta-type": "object", members: [] },
  { name: "blockdev-add", "meta-type": "command", "arg-type": "options", "ret-type": "empty" },
  { name: "query-jobs", "meta-type": "command", "arg-type": "empty", "ret-type": "empty" },
];
const schema = new Schema(infos);
const texts = (line, names) => schema.complete(line, names).offers.map((o) => o.text);

test("words end at spaces, not within quotes and braces", () => {
  assert.deepEqual(split(`a  b='c d' e={"f": [1, "}"]} g=\\`).map((w) => w.text), ["a", "b=c d", `e={"f": [1, "}"]}`, "g=\\"]);
  assert.deepEqual(split("  x ").map((w) => [w.start, w.end]), [[2, 3]]);
  assert.deepEqual(split(`k='it\\'s'`).map((w) => w.text), ["k=it's"]);
  assert.deepEqual(split(""), []);
});

test("commands are completed, then required members, then the others", () => {
  assert.deepEqual(texts("query"), ["query-jobs"]);
  assert.deepEqual(texts("blockdev-add "), ["driver=", "node-name=", "read-only="]);
  assert.deepEqual(texts("blockdev-add driver=qcow2 "), ["file=", "node-name=", "read-only=", "l2-cache-size=", "names="]);
  assert.deepEqual(texts("blockdev-add driver=q"), ["driver=qcow2"]);
  assert.deepEqual(texts("blockdev-add driver=qcow2 file.driver=file file.file"), ["file.filename="]);
  assert.deepEqual(texts("blockdev-add read-only=t"), ["read-only=true"]);
  assert.equal(schema.complete("blockdev-add driver=q").from, 13);
});

test("names of what there is are offered where one is wanted, quoted if need be", () => {
  const names = (member) => (member === "node-name" ? ["disk", "my disk"] : []);
  assert.deepEqual(texts("blockdev-add node-name=", names), ["node-name=disk", "node-name='my disk'"]);
  assert.deepEqual(texts("blockdev-add filename=", names), []);
});

test("arguments get the types of the schema", () => {
  const { command, args, wrong } = schema.parse("blockdev-add driver=qcow2 read-only=on l2-cache-size=1M names=a,b file.driver=file file.filename='a b' node-name=12");
  assert.equal(wrong, "");
  assert.equal(command, "blockdev-add");
  assert.deepEqual(JSON.parse(JSON.stringify(args)), { driver: "qcow2", "read-only": true, "l2-cache-size": 1048576, names: ["a", "b"], file: { driver: "file", filename: "a b" }, "node-name": "12" });
  assert.deepEqual(schema.parse("blockdev-add file=null driver=qcow2").args.file, null);
  assert.deepEqual(schema.parse("blockdev-add driver=qcow2 names.0=x names.1=y").args.names, ["x", "y"]);
  assert.equal(schema.parse("query-jobs").args, undefined);
});

test("what does not fit stays text, and what is no argument is refused", () => {
  assert.equal(schema.parse("blockdev-add driver=qcow2 l2-cache-size=9999999999999999999").args["l2-cache-size"], "9999999999999999999");
  assert.equal(schema.parse("blockdev-add other=1").args.other, "1");
  assert.match(schema.parse("blockdev-add x").wrong, /KEY=VALUE/);
  assert.equal(schema.parse("blockdev-add __proto__.x=1 toString=2").args.toString, "2");
  assert.equal({}.x, undefined);
});

test("a line in JSON is the command as it is", () => {
  assert.deepEqual(schema.parse('{"execute": "query-jobs", "arguments": {"a": 1}}'), { command: "query-jobs", args: { a: 1 }, wrong: "" });
  assert.notEqual(schema.parse('{"execute"').wrong, "");
  assert.notEqual(schema.parse("{}").wrong, "");
});
