/*
 * A purchase from the reservation to its end: queue, settlement, money, cancel, sweeper.
 *
 * What each process stands for
 *   Buyer     CreatePurchase                     purchase_svc/buying.py, purchase_book.insert, queue_writer.py
 *   Canceller CancelPurchase                     purchase_book.cancel, servicer._give_back
 *   Broker    RabbitMQ: a message twice, or lost  settlement_queue.py
 *   Worker    a settlement worker                purchase_svc/settlement.py, settlement_rules.py, settlement_lane.py
 *   Sweeper   what drives the rest to its end    purchase_svc/sweeper.py, abandoned.py
 *   Expirer   holds lapse                        balance_svc/expiry.py, hold.lapsed
 *   Deposit   the poor one gets money            balance_svc/transfer_book.py
 *   Outsider  somebody else releases units       BatchReleaseReservations, as its contract allows
 *   Judge     nothing can happen any more        what must be true at the end
 *
 * Ann and Bob want one unit each, which costs 1. One of them is poor until a deposit comes. The stock is what SQL has
 * of it (reservation_book.py); how the gate in Redis agrees with it is the matter of gate.pml.
 * A step is one statement or one call to a service. Of a worker that breaks off, its process may have died or a call's
 * answer may be missing, after the call did its work or before: either way its message comes again.
 *
 * Bounds: USERS (1: Ann alone), TOTAL units, BREAKS times that a worker breaks off, DUPLICATES and LOSSES of messages.
 * PARKED is left out: it takes more breaks than attempts are allowed, and waits for an operator.
 *
 * Rules can be left out: -D with a name from the list in check.py. What is left out is marked LEFT_OUT.
 */
#ifndef USERS
#define USERS 2
#endif
#ifndef TOTAL
#define TOTAL 1
#endif
#ifndef BREAKS
#define BREAKS 1
#endif
#ifndef DUPLICATES
#define DUPLICATES 1
#endif
#ifndef LOSSES
#define LOSSES 1
#endif

mtype = { Ann, Bob };
#define NAME(p) ((p) == 0 -> Ann : Bob)
#define IDS 2
#define PARK end_parked: false

#define NONE 0
/* reservations.state and purchases.state */
#define RESERVED 1
#define SOLD 2
#define RELEASED 3
#define SETTLING 4
#define CONFIRMED 5
#define FAILED 6
#define CANCELLED 7
#define PARKED 8
/* holds.state */
#define HELD 1
#define CAPTURED 2
#define HOLD_RELEASED 3
#define EXPIRED 4
#define REFUSED 5

byte purchase[IDS];
bool cleanup[IDS];              /* purchases.cleanup_pending */
bool answered[IDS];             /* 202 was sent */
byte reservation[IDS];
byte available = TOTAL;
byte hold[IDS];
byte balance[IDS];
bool cancelled[IDS];            /* a cancel was told that it won */
byte captures[IDS];             /* captures booked to the fund */
byte waiting[IDS];              /* messages in the queue that carry the purchase */
byte in_hand[IDS];              /* messages that workers have not acked */
byte breaks;
byte poor;                      /* who has no money yet */
bool busy;                      /* worker 1 has a message; worker 2, who is no different, leaves the first to it */

#define FREE_MONEY(p) (balance[p] - (hold[p] == HELD))
#define TAKEN(p) (reservation[p] == RESERVED || reservation[p] == SOLD)
#define UNFINISHED(p) (purchase[p] == RESERVED || purchase[p] == SETTLING)
#define SETTLED(p) (purchase[p] == CONFIRMED && reservation[p] == SOLD && hold[p] == CAPTURED && captures[p] == 1)
#define NOTHING(p) (!TAKEN(p) && hold[p] != HELD && hold[p] != CAPTURED && captures[p] == 0)

#define promise(condition, broken) if :: (condition) :: else -> printf(broken); assert(false) fi

inline promises_of(p) {
  promise(captures[p] <= 1, "BROKEN I2: charged twice\n");
  promise(purchase[p] != CONFIRMED || SETTLED(p), "BROKEN I2: CONFIRMED without shares and one capture\n");
#ifndef AT_THE_END              /* stricter than I2: whoever reads FAILED may buy again at once */
  promise(!((purchase[p] == FAILED || purchase[p] == CANCELLED) && !cleanup[p]) || NOTHING(p),
    "BROKEN I2: ended without success, and something is still reserved, held or taken\n");
#endif
  promise(!cancelled[p] || purchase[p] == CANCELLED, "BROKEN I2: a cancelled purchase goes on\n");
  promise(balance[p] >= (hold[p] == HELD), "BROKEN I3: more money held than there is\n");
  promise(!answered[p] || purchase[p] != NONE, "BROKEN I4: an answered purchase is not durable\n")
}

/* After every change. */
inline promises() {
  promise(available + TAKEN(0) + TAKEN(1) == TOTAL, "BROKEN I6: available + reserved + sold is not the total\n");
  promises_of(0);
  promises_of(1)
}

inline release_units(p) { reservation[p] = RELEASED; available++ }

proctype Buyer(byte p; byte number) {
  /* BatchReserveShares */
  if
  :: d_step { reservation[p] == NONE && available > 0 ->
       reservation[p] = RESERVED; available--;
       printf("%e's buy %d: a unit is reserved\n", NAME(p), number); promises() }
  :: d_step { reservation[p] == NONE && available == 0 -> printf("%e's buy %d: sold out\n", NAME(p), number) };
     goto over
  :: d_step { TAKEN(p) -> printf("%e's buy %d: reserved earlier\n", NAME(p), number) }
  :: d_step { reservation[p] == RELEASED -> printf("%e's buy %d: the id is spent\n", NAME(p), number) }; goto over
  fi;
  /* purchase_book.insert, ON CONFLICT DO NOTHING: whoever's row is there decides. */
  if
  :: d_step { purchase[p] == NONE ->
       purchase[p] = RESERVED; answered[p] = 1;
       printf("%e's buy %d: the purchase is RESERVED in SQL and answered 202\n", NAME(p), number); promises() }
  :: d_step { purchase[p] != NONE -> answered[p] = 1; printf("%e's buy %d: the purchase exists\n", NAME(p), number) };
     goto over
  :: d_step { printf("%e's buy %d: dies between reserving and recording\n", NAME(p), number) }; goto over
  fi;
  if
  :: d_step { waiting[p]++; printf("%e's buy %d: the purchase is published\n", NAME(p), number) }
  :: d_step { printf("%e's buy %d: dies before publishing\n", NAME(p), number) }
  fi;
over:
  PARK
}

proctype Canceller(byte p) {
  if
#ifdef R5_CANCEL_LATE           /* LEFT_OUT: a cancel wins also after a worker has claimed the purchase */
  :: d_step { UNFINISHED(p) ->
#else
  :: d_step { purchase[p] == RESERVED ->
#endif
       purchase[p] = CANCELLED; cleanup[p] = 1; cancelled[p] = 1;
       printf("%e's cancel: the purchase is CANCELLED\n", NAME(p)); promises() }
  :: goto over
  fi;
  if
  :: d_step { reservation[p] != SOLD ->
       if :: TAKEN(p) -> release_units(p) :: else fi;
       printf("%e's cancel: the units are given back\n", NAME(p)); promises() };
     if
     :: d_step { cleanup[p] = 0; printf("%e's cancel: is done\n", NAME(p)); promises() }
     :: skip
     fi
  :: skip
  fi;
over:
  PARK
}

proctype Broker() {
  byte duplicates;
  byte losses;
  end: do
  :: d_step { waiting[0] > 0 && duplicates < DUPLICATES -> waiting[0]++; duplicates++;
       printf("broker: Ann's purchase is in the queue twice\n") }
  :: d_step { waiting[1] > 0 && duplicates < DUPLICATES -> waiting[1]++; duplicates++;
       printf("broker: Bob's purchase is in the queue twice\n") }
  :: d_step { waiting[0] > 0 && losses < LOSSES -> waiting[0]--; losses++; printf("broker: loses Ann's message\n") }
  :: d_step { waiting[1] > 0 && losses < LOSSES -> waiting[1]--; losses++; printf("broker: loses Bob's message\n") }
  od
}

inline take(which) {
  p = which; waiting[p]--; in_hand[p]++;
  busy = busy || number == 1;
  printf("worker %d: takes %e's message\n", number, NAME(p))
}

/* Died, or an answer is missing: the message comes again. */
inline break_off() {
  breaks++; in_hand[p]--; waiting[p]++;
  printf("worker %d: breaks off, %e's message will come again\n", number, NAME(p))
}

proctype Worker(byte number) {
  byte p;
  bool fails;
  end: do
  :: d_step { waiting[0] > 0 && (number == 1 || busy) -> take(0) }; break
  :: d_step { waiting[1] > 0 && (number == 1 || busy) -> take(1) }; break
  od;

  /* settlement_book.claim */
  if
#ifdef R5_NO_CLAIM              /* LEFT_OUT: settles what it is given, claimed or not */
  :: d_step { purchase[p] != CONFIRMED && purchase[p] != FAILED -> purchase[p] = SETTLING;
#else
  :: d_step { UNFINISHED(p) -> purchase[p] = SETTLING;
#endif
       printf("worker %d: claims %e's purchase\n", number, NAME(p)); promises() }
#ifdef R5_NO_CLAIM
  :: d_step { purchase[p] == CONFIRMED || purchase[p] == FAILED ->
#else
  :: d_step { !UNFINISHED(p) ->
#endif
       printf("worker %d: %e's purchase has ended, acks\n", number, NAME(p)) };
     goto ack
  fi;

  /* BatchPlaceHolds: hold.decide_first_place, decide_repeated_place */
  if
#ifdef R4_FORGET_EXPIRY         /* LEFT_OUT: a hold that has lapsed is not remembered */
  :: d_step { (hold[p] == NONE || hold[p] == EXPIRED) && FREE_MONEY(p) > 0 ->
#else
  :: d_step { hold[p] == NONE && FREE_MONEY(p) > 0 ->
#endif
       hold[p] = HELD; printf("worker %d: %e's money is held\n", number, NAME(p)); promises() }
  :: d_step { hold[p] == HELD || hold[p] == CAPTURED ->
       printf("worker %d: %e's money is held or taken already\n", number, NAME(p)) }
  :: d_step { hold[p] == NONE && FREE_MONEY(p) == 0 ->
#ifndef R4_FORGET_REFUSAL       /* LEFT_OUT: a refusal is not remembered */
       hold[p] = REFUSED;
#endif
       printf("worker %d: %e's hold is refused, no funds\n", number, NAME(p)) };
     goto give_back
#ifdef R4_FORGET_EXPIRY
  :: d_step { hold[p] == HOLD_RELEASED || hold[p] == REFUSED ->
#else
  :: d_step { hold[p] == HOLD_RELEASED || hold[p] == REFUSED || hold[p] == EXPIRED ->
#endif
       printf("worker %d: %e's hold has ended or was refused earlier\n", number, NAME(p)) };
     goto give_back
  :: d_step { breaks < BREAKS -> break_off() }; goto next
  fi;

#ifdef R5_CAPTURE_FIRST         /* LEFT_OUT: the money is taken before the share is assigned */
  if
  :: d_step { hold[p] == HELD || hold[p] == CAPTURED ->
       if :: hold[p] == HELD -> hold[p] = CAPTURED; balance[p]--; captures[p]++ :: else fi;
       printf("worker %d: %e's money is taken\n", number, NAME(p)) }
  :: d_step { hold[p] != HELD && hold[p] != CAPTURED ->
       printf("worker %d: %e's money cannot be taken, the hold has ended\n", number, NAME(p)) };
     goto give_back
  :: d_step { breaks < BREAKS -> break_off() }; goto next
  fi;
#endif

  /* BatchConfirmReservations */
  if
  :: d_step { TAKEN(p) -> reservation[p] = SOLD; printf("worker %d: %e owns a share\n", number, NAME(p)); promises() }
  :: d_step { !TAKEN(p) -> printf("worker %d: %e's reservation is released, no share\n", number, NAME(p)) };
     goto release_hold
  :: d_step { breaks < BREAKS -> break_off() }; goto next
  fi;

#ifndef R5_CAPTURE_FIRST
  /* BatchCaptureHolds */
  if
  :: d_step { hold[p] == HELD || hold[p] == CAPTURED ->
       if :: hold[p] == HELD -> hold[p] = CAPTURED; balance[p]--; captures[p]++ :: else fi;
       printf("worker %d: %e's money is taken\n", number, NAME(p)); promises() }
  :: d_step { hold[p] != HELD && hold[p] != CAPTURED ->
       printf("worker %d: %e's money cannot be taken, the hold has ended\n", number, NAME(p)) };
     goto give_back
  :: d_step { breaks < BREAKS -> break_off() }; goto next
#ifdef R4_GUESS                 /* LEFT_OUT: the purchase decides by itself what a missing answer means */
  :: d_step { breaks < BREAKS && hold[p] == HELD ->
       breaks++; hold[p] = CAPTURED; balance[p]--; captures[p]++;
       printf("worker %d: %e's money is taken, but the answer is lost and counts as a refusal\n", number, NAME(p)) };
     goto give_back
#endif
  fi;
#endif
  goto finish;

give_back: /* no money, for good: units and shares go back, and only then may it fail */
  if
  :: d_step { fails = 1;
       if :: TAKEN(p) -> release_units(p) :: else fi;
       printf("worker %d: gives %e's unit back\n", number, NAME(p)); promises() };
     goto finish
  :: d_step { breaks < BREAKS -> break_off() }; goto next
  fi;

release_hold: /* no share, for good: the money goes back, and only then may it fail */
  if
  :: d_step { hold[p] != CAPTURED ->
       fails = 1;
       if :: hold[p] == HELD -> hold[p] = HOLD_RELEASED :: else fi;
       printf("worker %d: %e's hold is released\n", number, NAME(p)); promises() };
     goto finish
  :: d_step { hold[p] == CAPTURED ->
       if :: UNFINISHED(p) -> purchase[p] = PARKED :: else fi;
       printf("worker %d: %e's money has been taken and cannot be released; parks the purchase\n", number, NAME(p)) };
     goto ack
  :: d_step { breaks < BREAKS -> break_off() }; goto next
  fi;

finish: /* settlement_book.finish: only from SETTLING */
  if
  :: d_step {
       if
       :: purchase[p] == SETTLING && fails ->
          purchase[p] = FAILED; printf("worker %d: %e's purchase FAILED\n", number, NAME(p))
       :: purchase[p] == SETTLING && !fails ->
          purchase[p] = CONFIRMED; printf("worker %d: %e's purchase is CONFIRMED\n", number, NAME(p))
       :: else -> printf("worker %d: %e's purchase has ended already\n", number, NAME(p))
       fi;
       promises() }
  :: d_step { breaks < BREAKS -> break_off() }; goto next
  fi;
ack:
  if
  :: d_step { in_hand[p]--; printf("worker %d: acks\n", number) }
  :: d_step { breaks < BREAKS -> break_off() }
  fi;
next:
  if :: d_step { p = 0; fails = 0; busy = busy && number != 1 } fi;
  goto end
}

inline clean_up(p) {
  if :: TAKEN(p) -> release_units(p) :: else fi;
  cleanup[p] = 0;
  printf("sweeper: gives back what %e's purchase still had\n", NAME(p));
  promises()
}

#define IN_NO_QUEUE(p) (UNFINISHED(p) && waiting[p] == 0 && in_hand[p] == 0)
/* What cannot be cleaned up is left and shouted about. */
#define CLEANABLE(p) (cleanup[p] && hold[p] != CAPTURED && reservation[p] != SOLD)

/* Here it may act at any moment: no promise depends on its delays. */
proctype Sweeper() {
  end: do
  :: d_step { IN_NO_QUEUE(0) -> waiting[0]++; printf("sweeper: publishes Ann's purchase again\n") }
  :: d_step { IN_NO_QUEUE(1) -> waiting[1]++; printf("sweeper: publishes Bob's purchase again\n") }
  :: d_step { reservation[0] == RESERVED && purchase[0] == NONE -> purchase[0] = FAILED; cleanup[0] = 1;
       printf("sweeper: Ann's reservation has no purchase; records one as FAILED\n"); promises() }
  :: d_step { reservation[1] == RESERVED && purchase[1] == NONE -> purchase[1] = FAILED; cleanup[1] = 1;
       printf("sweeper: Bob's reservation has no purchase; records one as FAILED\n"); promises() }
  :: d_step { CLEANABLE(0) && hold[0] == HELD -> hold[0] = HOLD_RELEASED; printf("sweeper: releases Ann's hold\n") }
  :: d_step { CLEANABLE(1) && hold[1] == HELD -> hold[1] = HOLD_RELEASED; printf("sweeper: releases Bob's hold\n") }
  :: d_step { CLEANABLE(0) && hold[0] != HELD -> clean_up(0) }
  :: d_step { CLEANABLE(1) && hold[1] != HELD -> clean_up(1) }
  od
}

proctype Expirer() {
  end: do
  :: d_step { hold[0] == HELD -> hold[0] = EXPIRED; printf("Ann's hold expires\n") }
  :: d_step { hold[1] == HELD -> hold[1] = EXPIRED; printf("Bob's hold expires\n") }
  od
}

proctype Deposit() {
  d_step { balance[poor]++; printf("%e gets a deposit\n", NAME(poor)) };
  PARK
}

proctype Outsider() {
  if
  :: d_step { reservation[0] == RESERVED ->
       release_units(0); printf("somebody releases Ann's reservation\n"); promises() }
  :: d_step { reservation[1] == RESERVED ->
       release_units(1); printf("somebody releases Bob's reservation\n"); promises() }
  :: skip
  fi;
  PARK
}

inline judge(p) {
  promise(purchase[p] == NONE || SETTLED(p) || NOTHING(p),
    "BROKEN I2: at the end there are shares without one capture, or a capture without shares\n");
  promise(!UNFINISHED(p) && purchase[p] != PARKED && !cleanup[p], "BROKEN I4: a purchase never ends\n");
  promise(reservation[p] != RESERVED, "BROKEN I7: units stay reserved for ever\n");
  promise(reservation[p] != SOLD || purchase[p] == CONFIRMED, "BROKEN I7: a share is sold to nobody\n")
}

proctype Judge() {
  end: timeout ->
  d_step {
    printf("nothing is in flight any more\n");
    judge(0);
    judge(1);
    promise(balance[0] + captures[0] + balance[1] + captures[1] == USERS, "BROKEN I3: money is lost\n")
  }
}

init {
  atomic {
#if USERS == 1
    if :: balance[0] = 1; poor = 1 :: poor = 0; run Deposit() fi;
#else
    balance[0] = 1; poor = 1;
    run Deposit();
    run Buyer(1, 1);
#endif
    run Buyer(0, 2); run Buyer(0, 1);
    run Canceller(0); run Broker(); run Worker(2); run Worker(1); run Sweeper(); run Expirer();
    run Outsider(); run Judge()
  }
}
