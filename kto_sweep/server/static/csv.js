// Exports a table as a CSV file that is safe to open in a spreadsheet.

function field(value) {
  let text =
    value === null || value === undefined ? "" : Array.isArray(value) ? value.join(" ") : String(value);
  // Spreadsheets would evaluate such a text as a formula.
  if (typeof value !== "number" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** The lines of a CSV file. @param {string[]} names @param {any[][]} rows */
export function csv(names, rows) {
  return [names, ...rows].map((row) => row.map(field).join(",")).join("\r\n") + "\r\n";
}

/** Downloads a text as a file. */
export function save(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
