# `make help` shows the targets. Settings are environment variables or arguments: make sale USERS=1000 SHARES=100
.DEFAULT_GOAL := help
.PHONY: help install sale settle test test-slow bench screenshots soak fuzz faults faults-proven model dead-letters replay-dead-letters parked replay-parked \
        fail-parked up down restart status certs logs clean audit token operator-token account new-sale lint format proto \
        release-proto client

export PYTHONPATH := $(CURDIR):$(CURDIR)/gen
# The commands start processes; gRPC then only complains that it cannot follow them.
export GRPC_ENABLE_FORK_SUPPORT := 0
python := .venv/bin/python

# Settings of `make sale`. POOR, WAIT and REFUND are parts of 1: of the users who cannot pay, of those who join the
# waitlist, of the owners who want their money back. RATE is in purchases/s; BURST the token bucket's size.
USERS  ?= 50000
SHARES ?= 10000
POOR   ?= 0.05
WAIT   ?= 0.05
REFUND ?= 0
RATE   ?= 500
BURST  ?= 100
PART   ?=
RENEW  ?=
# Settings of `make bench`: of each contestant so many rounds.
ROUNDS ?=
# Settings of `make soak` and `make fuzz`.
MINUTES ?=
# Settings of `make faults` and `make fuzz`: the choices to repeat, and part of the names of the faults wanted.
SEED   ?=
# Settings of the operators' commands: how many letters, and which purchases.
MOST     ?=
PURCHASE ?=
ONLY   ?=

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-19s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install:  ## Install the server programs (apt-get) and the Python packages (.venv), where missing
	@stack/bootstrap.sh

sale: install  ## Run a whole sale and print the verdict (USERS, SHARES, POOR, WAIT, REFUND, RATE)
	@SETTLEMENT_RATE_PER_S=$(RATE) SETTLEMENT_BURST=$(BURST) $(python) -m stack up
	@USERS=$(USERS) SHARES=$(SHARES) POOR=$(POOR) WAIT=$(WAIT) REFUND=$(REFUND) RATE=$(RATE) $(python) -m bench.sale

settle: up  ## Measure settlement with the bucket open (SHARES)
	@SHARES=$(SHARES) $(python) -m bench.settlement

test: install lint  ## Run lint and all tests but the slow ones, on servers of their own
	@$(python) -m pytest

test-slow: install  ## Run the tests that wait for time-outs and restarts of brokers
	@$(python) -m pytest -m slow --ignore=tests/integration/test_model_replays.py

bench: install  ## Measure everything beside its peers (ONLY, ROUNDS)
	@stack/bootstrap.sh bench
	@ONLY="$(ONLY)" ROUNDS=$(ROUNDS) $(python) -m bench

screenshots: install  ## Run a small sale and take pictures of the pages into docs/images
	@stack/bootstrap.sh screenshots
	@$(python) -m tests.pages.screenshots

soak: install  ## Sale after sale for ten minutes, and see that memory and descriptors stay flat (MINUTES)
	@$(if $(MINUTES),MINUTES=$(MINUTES)) $(python) -m bench.soak

fuzz: install  ## Throw what nobody meant at every RPC, the queue's decoder and the gateway (MINUTES, SEED)
	@MINUTES=$(MINUTES) SEED=$(SEED) $(python) -m tests.fuzz

faults:  ## Break every part under a running sale and check every promise (SEED, ONLY)
	@stack/bootstrap.sh faults
	@SEED=$(SEED) ONLY="$(ONLY)" $(python) -m tests.faults

faults-proven: install  ## Plant bugs in a copy, and see that the fault suite catches each (ONLY)
	@stack/bootstrap.sh faults
	@SEED=$(SEED) ONLY="$(ONLY)" $(python) -m tests.faults.planted_bugs

model: install  ## Check a model of the protocol exhaustively, and replay what breaks it without its rules
	@stack/bootstrap.sh model
	@$(python) -m model.check
	@$(python) -m pytest -q -m slow tests/integration/test_model_replays.py

up: install  ## Start the servers and services; what runs already is left alone
	@$(python) -m stack up

down: install  ## Stop them, keep the data
	@$(python) -m stack down

restart: down up  ## Stop and start everything

status: install  ## Show what runs and whether it answers
	@$(python) -m stack status

certs: install  ## Make the local authority and the services' certificates where missing or near their end (RENEW=1: all)
	@$(python) -m stack certs $(if $(RENEW),--renew)

logs: install  ## Follow the logs (PART=gateway: of one part)
	@$(python) -m stack logs $(PART)

clean: install  ## Stop them, remove their data and secrets
	@$(python) -m stack clean

audit: install  ## Check the promises I1 to I8 over all sales; harmless in the middle of one
	@$(python) -m bench.audit

# USER is also the login name in the environment; only what is given to make counts.
user := $(if $(filter command line,$(origin USER)),$(USER))

token: install  ## Print a token for a user: make token USER=alice
	@$(python) -m bench.hand token "$(user)"

operator-token: install  ## Print a token for an operator: make operator-token USER=olga
	@$(python) -m bench.hand operator-token "$(or $(user),operator)"

account: install  ## Fund a user's account: make account USER=alice EUR=100
	@$(python) -m bench.hand account "$(user)" "$(EUR)"

new-sale: install  ## Open a sale and show how to buy by hand (SHARES)
	@$(python) -m bench.hand new-sale

# As a settlement worker is told: its addresses, and where its stores are.
operate := $(python) -m stack.run settlement purchase_svc

dead-letters: install  ## List the messages that no worker can settle; they stay
	@$(operate) dead-letters

replay-dead-letters: install  ## Send them to their partitions again (MOST)
	@$(operate) replay-dead-letters $(if $(MOST),--most $(MOST))

parked: install  ## List the purchases whose attempts are exhausted
	@$(operate) parked

replay-parked: install  ## Let the workers try parked purchases again (PURCHASE="id id"; default: all)
	@$(operate) replay-parked $(PURCHASE)

fail-parked: install  ## End parked purchases, hold and units given back first: make fail-parked PURCHASE=id
	@$(operate) fail-parked $(PURCHASE)

lint: install  ## Check style, types, contracts, that generated code is current, and known holes of dependencies
	@.venv/bin/ruff check --quiet .
	@.venv/bin/ruff format --quiet --check .
	@.venv/bin/mypy --no-error-summary .
	@cd protos && ../.venv/bin/buf lint
	@$(python) protos/compare.py
	@$(python) protos/generate.py --check
	@$(python) protos/document.py --check
	@$(python) protos/show_examples.py --check
	@$(python) -m stack.audit_dependencies

format:  ## Put the code into the common format
	@.venv/bin/ruff check --quiet --fix . ; .venv/bin/ruff format --quiet .

proto: install  ## Generate gen/, docs/api.md and docs/grpc-examples.md from protos/ and docs/examples/
	@$(python) protos/generate.py
	@$(python) protos/document.py
	@$(python) protos/show_examples.py

release-proto: install  ## Record the contract as released: from then on nothing of it may be broken (make lint)
	@$(python) protos/compare.py
	@$(python) protos/compare.py --release

client: install  ## Build the client package into client/dist
	@cd client && rm -rf dist && ../.venv/bin/python -m hatchling build -t wheel
