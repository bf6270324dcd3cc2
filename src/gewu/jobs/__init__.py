"""Job → run → result → report: the one chain that every engine of gewu runs through.

A job is a TOML file with an optional `[job]` table and exactly one engine table. Running it makes a result: a plain directory
that is complete and checksummed when its `manifest.json` says so. The files, in the order to read them:

    engines    the literal table of engines, and the entry points of other people's
    job        TOML text → checked, typed configuration, with the hashes of the input files
    door       the `ctx` that an engine sees: numbers, arrays, progress, checkpoints, stopping
    talk       what a person (or a program, with `--json`) sees while the run goes on
    run        the lifecycle: directory, lock, resume, signals, time limit, exit code
    record     what is written at the end: numbers.json, arrays.nc, report.html, manifest.json
    netcdf     arrays ↔ NetCDF-4 bytes
    result     reading a result directory back, with verification
    report     the page to send to a colleague; `figures` and `viewer` draw its pictures
"""
