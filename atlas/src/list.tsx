/** A table of any length of which only the rows in sight are in the document. */
import { signal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";

export type Column = {
  name: string; title: string; numeric?: boolean; wide?: boolean;
  /** What rows are ordered by. */
  key: (row: number) => number | string;
  cell: (row: number) => ComponentChildren;
};
const HEIGHT = 44;
const OVERSCAN = 8;

/** Which rows are in sight, and a few on either side, so that keys and scrolling find them there. */
export function inSight(top: number, height: number, count: number): { first: number; end: number } {
  const first = Math.max(0, Math.min(count, Math.floor(top / HEIGHT)) - OVERSCAN);
  return { first, end: Math.min(count, Math.ceil((top + height) / HEIGHT) + OVERSCAN) };
}

export function ordered(rows: number[], column: Column, down: boolean): number[] {
  const keys = new Map(rows.map((row) => [row, column.key(row)]));
  const sign = down ? -1 : 1;
  return [...rows].sort((a, b) => {
    const [left, right] = [keys.get(a)!, keys.get(b)!];
    if (left === right) return a - b;
    return left < right ? -sign : sign;
  });
}

const sortings = signal<Record<string, { column: string; down: boolean }>>({});

export function List({ label, rows, columns, href, sorted }: {
  label: string; rows: number[]; columns: Column[]; href: (row: number) => string;
  sorted: { column: string; down: boolean };
}) {
  const sorting = sortings.value[label] ?? sorted;
  const column = columns.find((each) => each.name === sorting.column) ?? columns[0];
  const shown = useMemo(() => ordered(rows, column, sorting.down), [rows, column.name, sorting.down]);
  const box = useRef<HTMLDivElement>(null);
  const [view, setView] = useState({ top: 0, height: 600 });
  useLayoutEffect(() => {
    const own = box.current!;
    const look = () => setView({ top: own.scrollTop, height: own.clientHeight });
    look();
    own.addEventListener("scroll", look, { passive: true });
    // On paper all is in sight.
    const whole = () => setView({ top: 0, height: Infinity });
    addEventListener("beforeprint", whole);
    addEventListener("afterprint", look);
    const sized = new ResizeObserver(look);
    sized.observe(own);
    return () => {
      own.removeEventListener("scroll", look);
      removeEventListener("beforeprint", whole);
      removeEventListener("afterprint", look);
      sized.disconnect();
    };
  }, []);
  const { first, end } = inSight(view.top, view.height, shown.length);
  const sort = (name: string) => {
    const down = sorting.column === name ? !sorting.down : columns.find((each) => each.name === name)!.numeric === true;
    sortings.value = { ...sortings.value, [label]: { column: name, down } };
    box.current?.scrollTo(0, 0);
  };
  const template = columns.map((each) => (each.wide ? "minmax(9rem, 2fr)" : "minmax(5rem, 1fr)")).join(" ");
  const key = (event: KeyboardEvent) => {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 }[event.key];
    const place = (event.target as HTMLElement).dataset.place;
    if (step === undefined || place === undefined) return;
    event.preventDefault();
    const next = Math.max(0, Math.min(shown.length - 1, Number(place) + step));
    const own = box.current!;
    own.scrollTop = Math.max((next + 1) * HEIGHT - own.clientHeight, Math.min(own.scrollTop, next * HEIGHT));
    setView({ top: own.scrollTop, height: own.clientHeight });
    requestAnimationFrame(() => box.current?.querySelector<HTMLElement>(`[data-place="${next}"]`)?.focus());
  };
  return (
    <div class="list" role="table" aria-label={label} aria-rowcount={shown.length + 1}>
      <div role="rowgroup">
        <div class="row head" role="row" style={{ gridTemplateColumns: template }}>
          {columns.map((each) => (
            <div key={each.name} role="columnheader" class={each.numeric ? "number" : ""}
              aria-sort={each !== column ? "none" : sorting.down ? "descending" : "ascending"}>
              <button type="button" onClick={() => sort(each.name)}>
                {each.title}
                <span aria-hidden="true">{each !== column ? "" : sorting.down ? " ↓" : " ↑"}</span>
              </button>
            </div>
          ))}
        </div>
      </div>
      <div class="body" ref={box} onKeyDown={key} role="rowgroup" tabIndex={shown.length ? -1 : 0}>
        <div role="presentation" class="length" style={{ height: `${shown.length * HEIGHT}px` }}>
          {shown.slice(first, end).map((row, offset) => {
            const place = first + offset;
            return (
              <div key={row} class="row" role="row" aria-rowindex={place + 2}
                style={{ gridTemplateColumns: template, transform: `translateY(${place * HEIGHT}px)` }}>
                {columns.map((each, at) => (
                  <div key={each.name} role="cell" class={each.numeric ? "number" : ""}>
                    {at ? each.cell(row) : <a href={href(row)} data-place={place}>{each.cell(row)}</a>}
                  </div>
                ))}
              </div>
            );
          })}
        </div>
      </div>
    </div>
  );
}
