import { useEffect, useState } from "preact/hooks";

export type Later<T> = { value: T | null; error: string };

/** What a promise gives, null until then. */
export function useLater<T>(make: () => Promise<T>, keys: unknown[]): Later<T> {
  const [state, setState] = useState<Later<T> & { keys: unknown[] }>({ value: null, error: "", keys });
  useEffect(() => {
    let current = true;
    make().then(
      (value) => current && setState({ value, error: "", keys }),
      (error: Error) => current && setState({ value: null, error: error.message, keys }),
    );
    return () => {
      current = false;
    };
  }, keys);
  const same = keys.every((key, at) => key === state.keys[at]);
  return same ? state : { value: null, error: "" };
}
