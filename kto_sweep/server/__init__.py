"""The embedded, W&B-compatible server: GraphQL and file_stream over one SQLite file.

    local_server -> main (one process per home: lock, port, key)
                   |
    wandb SDK --> app (routes, key, body limits)
                   |-- graphql_api + resolvers/   reads and writes by GraphQL
                   |-- file_stream                history, events, summary, console lines of a run
                   |-- uploads                    run files, through signed URLs
                   |-- artifact_routes            artifacts' files, through signed URLs
                   `-- dashboard                  pages, their data (columns), login, controls
                          |
    heartbeat -> sweep_machine (what the agent does next) -> kto_sweep.search (the next trial)
                          |
                        store/ (one writer thread, WAL, migrations)

The server imports neither torch nor wandb, directly or indirectly.
"""
