"""Flights out of New York in 2013, replayed as a real-time pipeline.

    feed ── events ──▶ enrich ── events ──▶ delays ◀── RPC ── board ──▶ browser
                         │ RPC
                         ▼
                      registry

`feed` replays what happened, `registry` knows planes, airports, carriers and weather, `enrich` joins the two,
`delays` keeps the statistics, `board` shows them live. `python -m services.demo` runs it and checks every figure.
"""
