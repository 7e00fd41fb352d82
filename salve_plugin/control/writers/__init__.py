"""Writers: closed forms and small solvers, one a module, each of which returns an `Edit`."""
