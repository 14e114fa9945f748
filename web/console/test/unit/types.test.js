// The page's types, which its comments tell, as TypeScript checks them.

import { test } from "node:test";
import assert from "node:assert/strict";
import path from "node:path";

const compiler = await import("typescript").then((m) => m.default, () => null);
const folder = path.resolve(import.meta.dirname, "../../static");

test("types are right", { skip: !compiler && "needs typescript from npm" }, () => {
  const ts = /** @type {any} */ (compiler);
  const options = { allowJs: true, checkJs: true, noEmit: true, strict: true, target: ts.ScriptTarget.ES2023, module: ts.ModuleKind.NodeNext, lib: ["lib.es2023.d.ts", "lib.dom.d.ts", "lib.dom.iterable.d.ts"], types: [] };
  const program = ts.createProgram([path.join(folder, "main.js")], options);
  assert.deepEqual(program.getOptionsDiagnostics().map((/** @type {any} */ d) => d.messageText), []);
  // dagre is another's, as it is.
  const own = program.getSourceFiles().filter((/** @type {any} */ f) => path.dirname(f.fileName) === folder && !f.fileName.endsWith("/dagre.js"));
  assert.ok(own.length > 15, `${own.length} files`);
  const found = own.flatMap((/** @type {any} */ f) => [...program.getSyntacticDiagnostics(f), ...program.getSemanticDiagnostics(f)]);
  assert.equal(ts.formatDiagnostics(found, { getCurrentDirectory: () => folder, getCanonicalFileName: (/** @type {string} */ n) => n, getNewLine: () => "\n" }), "");
});
