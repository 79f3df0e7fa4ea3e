// Makes a component of a policy: node build.mjs SOURCE WIT WORLD COMPONENT

import { writeFile } from "node:fs/promises";
import { componentize } from "@bytecodealliance/componentize-js";

const [, , sourcePath, witPath, worldName, out] = process.argv;
const { component } = await componentize({
  sourcePath,
  witPath,
  worldName,
  // Each of these would import interfaces of WASI, which a policy may not call.
  disableFeatures: ["random", "stdio", "clocks", "http", "fetch-event"],
});
await writeFile(out, component);
