/** Which classes images are taken for, before an edit and after it. */
import { the } from "./data";
import { confusion } from "./edits";

export function Matrix({ labels, predicted, base, shown }: { labels: Int32Array; predicted: Int32Array; base: Int32Array; shown: number[] }) {
  const { classes } = the();
  const after = confusion(labels, predicted, shown);
  const before = confusion(labels, base, shown);
  const name = (label: number) => classes.names[label];
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label="Confusion matrix">
      <table class="matrix">
        <thead><tr><th scope="col">label \ predicted</th>{shown.map((label) => <th scope="col" key={label} title={name(label)}><span>{name(label)}</span></th>)}{classes.names.length > shown.length ? <th scope="col"><span>others</span></th> : null}</tr></thead>
        <tbody>
          {shown.map((label, row) => {
            const sum = after[row].reduce((a, b) => a + b, 0) || 1;
            const cells = classes.names.length > shown.length ? after[row] : after[row].slice(0, -1);
            return (
              <tr key={label}>
                <th scope="row">{name(label)}</th>
                {cells.map((n, at) => {
                  const change = n - before[row][at];
                  return <td key={at} class={row === at ? "own" : ""} style={{ "--share": `${Math.round((85 * n) / sum)}%` }}>{n || ""}{change ? <small>{change > 0 ? `+${change}` : `−${-change}`}</small> : null}</td>;
                })}
              </tr>
            );
          })}
        </tbody>
      </table>
    </div>
  );
}

