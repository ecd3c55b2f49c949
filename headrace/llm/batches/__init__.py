"""The OpenAI Batch API: half the price, within a day.

requests   a stage writes them instead of asking, and answers `deferred`
courier    one process, under a lease: packs them into batches, sends those, collects answers
           into the ledger, and has the records done again, which then find them there
"""
