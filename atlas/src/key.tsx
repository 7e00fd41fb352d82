/** What the lines of a chart are, in words beside a piece of each. */
export type Line = { name: string; colour: "accent" | "second" | "soft"; dash?: number[]; wide?: boolean; band?: boolean };

export function Key({ lines }: { lines: Line[] }) {
  return (
    <ul class="key">
      {lines.map((line) => (
        <li key={line.name} class={line.colour}>
          <svg width="30" height="12" aria-hidden="true">
            {line.band ? <rect width="30" height="12" opacity="0.18" fill="currentColor" /> : null}
            <line x1="0" y1="6" x2="30" y2="6" stroke="currentColor" stroke-width={line.wide ? 2.5 : 1.5} stroke-dasharray={line.dash?.join(" ")} />
          </svg>
          {line.name}
        </li>
      ))}
    </ul>
  );
}
