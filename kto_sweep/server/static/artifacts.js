// The artifacts of a run: versions with their size, and on demand the files of one of them.

import { read, report } from "./api.js";
import { code, empty, h, put } from "./dom.js";
import { bytes, count } from "./format.js";

export class ArtifactList {
  constructor(project) {
    this.element = h("div");
    this._project = project; // "entity/project", for the command that downloads a version
    this._rows = new Map();
    this._drawn = "";
  }

  /** Draw `listed`, the last of `count` artifacts; rows that are open stay open. */
  update({ listed, count: all }) {
    const drawn = JSON.stringify([listed, all]);
    if (drawn === this._drawn) return;
    this._drawn = drawn;
    if (!all) {
      put(this.element, empty("The run has logged and used no artifacts."));
      return;
    }
    const rows = listed.map((artifact) => this._row(artifact));
    const more = all - listed.length;
    put(
      this.element,
      h("div", { class: "scroll tall", tabindex: 0 }, rows),
      more ? h("p", { class: "quiet" }, `${count(more, "older artifact")}: wandb artifact ls ${this._project}`) : null,
    );
  }

  _row(artifact) {
    let row = this._rows.get(artifact.id);
    if (!row) {
      const files = h("div");
      const head = h("summary");
      row = { head, element: h("details", { class: "artifact" }, head, files), read: false };
      row.element.addEventListener("toggle", () => {
        if (row.element.open && !row.read) {
          row.read = true;
          this._open(artifact, files, 0).catch((problem) => {
            row.read = false;
            report(problem);
          });
        }
      });
      this._rows.set(artifact.id, row);
    }
    const aliases = artifact.aliases.map((alias) => h("span", { class: "tag" }, alias));
    put(
      row.head,
      h("span", { class: "name" }, artifact.name),
      " ",
      aliases,
      h("span", { class: "quiet" }, ` ${artifact.type}, ${artifact.role}, ${count(artifact.files, "file")}, `),
      h("span", { class: "number" }, bytes(artifact.size)),
    );
    return row.element;
  }

  async _open(artifact, element, offset) {
    const { files, next } = await read(["artifacts", String(artifact.id), "files"], [["from", offset]]);
    const rows = files.map((file) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, this._link(artifact, file)),
        h("td", { class: "number" }, file.reference === null ? bytes(file.size) : "reference"),
      ),
    );
    const more = h("button", { type: "button" }, "Show more files");
    more.addEventListener("click", () => {
      more.disabled = true;
      this._open(artifact, element, next)
        .then(() => more.remove())
        .catch((problem) => {
          more.disabled = false;
          report(problem);
        });
    });
    if (!offset) {
      const command = `wandb artifact get ${this._project}/${artifact.name}`;
      element.append(h("p", { class: "quiet" }, code(`To download all files: \`${command}\``)));
    }
    element.append(h("table", { class: "values" }, h("tbody", {}, rows)));
    if (next !== null) element.append(more);
  }

  _link(artifact, file) {
    if (file.reference !== null) return `${file.path} (${file.reference})`;
    const path = file.path.split("/").map(encodeURIComponent).join("/");
    return h("a", { href: `/-/artifact/${artifact.id}/${path}` }, file.path);
  }
}
