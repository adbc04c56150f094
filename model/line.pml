/*
 * The waitlist of one sale: the gate's records of who waits, the line in SQL, and what keeps the two together.
 *
 * What each process stands for
 *   Buyer     BatchReserveShares for one id       inventory_svc/reserving.py, lua/reserve.lua, waitlist_book.join
 *   Leave     a cancel, in line or after          releasing.py
 *   Owner     gives its unit back                 releasing.py: the first in line has it in the same transaction
 *   Mover     the outbox, repeated until done     gate_moves.py, lua/move.lua
 *   Promoter  serves the line from stock          promoter.py, lua/promote.lua, waitlist_book.promote
 *   Reaper    records whose row never came        reaper.py, reservation_book.bury
 *   Rebuild   recalibration of the gate           recalibration.py, lua/switch.lua
 *   Restart   Redis comes back behind             the end of the append-only file is lost, the keys are there
 *   Judge     nothing can happen any more         Redis must equal SQL, and nothing lies idle
 *
 * Ann has the only unit, and may give it back. Bob and Cleo wait if need be; Bob asks twice, and may cancel. Dan does not
 * want to wait. Each wants one unit. A transaction is one step: gate.pml checks what FOR SHARE on the epoch is for.
 *
 * Each rule of the line can be left out: -D with a name from the list in check.py, marked LEFT_OUT below.
 */
#define TOTAL 1
#ifndef RESTARTS
#define RESTARTS 1
#endif
#ifndef REPEATS
#define REPEATS 1
#endif

mtype = { Ann, Bob, Cleo, Dan };
#define ANN 0
#define BOB 1
#define CLEO 2
#define DAN 3
#define IDS 4
/* A record of the gate. */
#define NONE 0
#define RESERVED 1
#define RELEASED 2
#define WAITS 3
#define TAKEN_OUT 4            /* P: has a unit, and SQL, which keeps the line, may not know it yet */
/* A place in SQL's line: NONE, WAITS, or what became of it. */
#define PROMOTED 5
#define LEFT 6
#define PARK end_parked: false
#define NAME(i) ((i) == ANN -> Ann : ((i) == BOB -> Bob : ((i) == CLEO -> Cleo : Dan)))

typedef Gate {
  byte run_id; byte epoch; bool serving;
  byte available; byte reserved; byte waiting;
  byte record[IDS]; bool unproven[IDS]
};
Gate gate;
Gate disk;
byte redis_run = 1;

/* SQL, as committed. */
byte epoch;
byte row[IDS];                  /* reservations.state: NONE, RESERVED, RELEASED */
byte place[IDS];                /* waitlist.state */
byte ticket[IDS];
byte last_ticket;
bool move[IDS];                 /* gate_moves: this id was released, or left */
byte passed_on[IDS];            /* who was promoted in the same transaction, plus one */
/* What was told, for the promises. */
bool waits_by_word[IDS];
bool left_by_word[IDS];

#define CURRENT (gate.serving && gate.run_id == redis_run)
#define RESERVED_ROWS ((row[0] == RESERVED) + (row[1] == RESERVED) + (row[2] == RESERVED) + (row[3] == RESERVED))
#define WAITING_ROWS ((place[BOB] == WAITS) + (place[CLEO] == WAITS))
/* Bob's or Cleo's place is the first. */
#define IS_FIRST(i) (place[i] == WAITS && !(place[BOB] == WAITS && ticket[BOB] < ticket[i]) \
  && !(place[CLEO] == WAITS && ticket[CLEO] < ticket[i]))

#define promise(condition, broken) if :: (condition) :: else -> printf(broken); assert(false) fi

inline promises() {
  promise(RESERVED_ROWS <= TOTAL, "BROKEN I1: SQL has more units reserved than there are\n");
  promise(!CURRENT || gate.available + gate.reserved == TOTAL, "BROKEN I6: available + reserved is not the total\n");
  promise((!waits_by_word[BOB] || place[BOB] != NONE) && (!waits_by_word[CLEO] || place[CLEO] != NONE),
    "BROKEN I4: somebody was told that it waits, and has no place\n");
  promise(!left_by_word[BOB] || (place[BOB] != WAITS && row[BOB] != RESERVED),
    "BROKEN I8: a cancelled buyer came back\n")
}

/* UPDATE waitlist ... PROMOTED and INSERT INTO reservations, under the line's lock. */
inline promote_row(i) {
  promise(IS_FIRST(i) || place[i] != WAITS, "BROKEN I8: somebody is promoted before the first in line\n");
  place[i] = PROMOTED; row[i] = RESERVED
}

/* What a release, a leave or a tombstone gives back in Redis. */
inline give_back(i) {
  if
  :: gate.record[i] == WAITS -> gate.waiting--; gate.record[i] = RELEASED
  :: gate.record[i] == RESERVED || gate.record[i] == TAKEN_OUT ->
     gate.reserved--; gate.available++; gate.record[i] = RELEASED
  :: else
  fi;
  gate.unproven[i] = 0
}

proctype Buyer(byte i; bool waits; byte number) {
  byte granted_epoch;
  bool joins;

  /* lua/reserve.lua */
  if
  :: d_step { !CURRENT -> printf("%e's call %d: the gate is not current, try again later\n", NAME(i), number) };
     goto over
  :: d_step { CURRENT && gate.record[i] == RELEASED -> printf("%e's call %d: the id is spent\n", NAME(i), number) };
     goto over
#ifdef W_NEWCOMERS              /* LEFT_OUT: the gate does not know that somebody waits */
  :: d_step { CURRENT && gate.record[i] == NONE && gate.available > 0 ->
#else
  :: d_step { CURRENT && gate.record[i] == NONE && gate.available > 0 && gate.waiting == 0 ->
#endif
       promise((place[BOB] != WAITS || i == BOB || gate.record[BOB] == TAKEN_OUT) &&
         (place[CLEO] != WAITS || i == CLEO || gate.record[CLEO] == TAKEN_OUT),
         "BROKEN I8: a newcomer is served while somebody waits\n");
       gate.available--; gate.reserved++; gate.record[i] = RESERVED; gate.unproven[i] = 1;
       granted_epoch = gate.epoch;
       printf("%e's call %d: the gate grants a unit under epoch %d\n", NAME(i), number, granted_epoch);
       promises() }
#ifdef W_NEWCOMERS
  :: d_step { CURRENT && gate.record[i] == NONE && gate.available == 0 && waits ->
#else
  :: d_step { CURRENT && gate.record[i] == NONE && (gate.available == 0 || gate.waiting > 0) && waits ->
#endif
       gate.waiting++; gate.record[i] = WAITS; gate.unproven[i] = 1; joins = 1;
       granted_epoch = gate.epoch;
       printf("%e's call %d: the gate lets it wait, under epoch %d\n", NAME(i), number, granted_epoch);
       promises() }
  :: d_step { CURRENT && gate.record[i] == NONE && (gate.available == 0 || gate.waiting > 0) && !waits ->
       printf("%e's call %d: sold out\n", NAME(i), number) };
     goto over
  :: d_step { CURRENT && (gate.record[i] == WAITS || gate.record[i] == TAKEN_OUT) ->
       joins = 1; granted_epoch = gate.epoch;
       printf("%e's call %d: the gate says that it waits already, epoch %d\n", NAME(i), number, granted_epoch) }
  :: d_step { CURRENT && gate.record[i] == RESERVED ->
       granted_epoch = gate.epoch;
       printf("%e's call %d: the gate says granted earlier, epoch %d\n", NAME(i), number, granted_epoch) }
  fi;

  if
  :: d_step { printf("%e's call %d: dies before its transaction\n", NAME(i), number) }
#ifdef W_UNFENCED_JOIN          /* LEFT_OUT: joins whatever has become of the gate */
  :: d_step { !joins && epoch != granted_epoch ->
#else
  :: d_step { epoch != granted_epoch ->
#endif
       printf("%e's call %d: finds another epoch and writes nothing\n", NAME(i), number) }
#ifdef W_UNFENCED_JOIN
  :: d_step { (joins || epoch == granted_epoch) && row[i] == NONE && place[i] == NONE ->
#else
  :: d_step { epoch == granted_epoch && row[i] == NONE && place[i] == NONE ->
#endif
       if
       :: joins -> last_ticket++; ticket[i] = last_ticket; place[i] = WAITS; waits_by_word[i] = 1;
          printf("%e's call %d: joins the line with ticket %d, and is told so\n", NAME(i), number, last_ticket)
       :: else -> row[i] = RESERVED; printf("%e's call %d: its row is committed, and it is told so\n", NAME(i), number)
       fi;
       promises() }
#ifdef W_ID_NOT_SPENT           /* LEFT_OUT: who has left may join again */
  :: d_step { epoch == granted_epoch && joins && place[i] == LEFT ->
       last_ticket++; ticket[i] = last_ticket; place[i] = WAITS;
       printf("%e's call %d: joins the line again\n", NAME(i), number); promises() }
#endif
  :: d_step { epoch == granted_epoch && (row[i] != NONE || place[i] != NONE) ->
       printf("%e's call %d: finds what became of its id\n", NAME(i), number);
       if :: place[i] == WAITS -> waits_by_word[i] = 1 :: else fi; promises() };
     if
     :: d_step { row[i] == RELEASED && CURRENT && gate.epoch == granted_epoch && !move[i] ->
          give_back(i); printf("%e's call %d: gives back what its spent id had\n", NAME(i), number); promises() }
     :: skip
     fi
  fi;
over:
  PARK
}

/* releasing.release: the unit of a reservation goes to the first in line in the same transaction. */
inline release_row(i) {
  row[i] = RELEASED; move[i] = 1; passed_on[i] = 0;
  if
  :: IS_FIRST(BOB) -> promote_row(BOB); passed_on[i] = BOB + 1
  :: IS_FIRST(CLEO) -> promote_row(CLEO); passed_on[i] = CLEO + 1
  :: else
  fi;
  printf("%e's release is committed, and its unit passed on to %d\n", NAME(i), passed_on[i])
}

proctype Owner() {
  end: d_step { row[ANN] == RESERVED -> release_row(ANN); promises() };
  PARK
}

/* A cancel: out of the line, or of what it was promoted to. */
proctype Leave(byte i) {
#ifdef W_LEAVE_REDIS_FIRST      /* LEFT_OUT: out of the gate's line first, then out of SQL's */
  end: d_step { place[i] == WAITS && CURRENT && gate.record[i] == WAITS ->
    give_back(i); printf("%e leaves: the gate's line first\n", NAME(i)); promises() };
  d_step {
    if
    :: place[i] == WAITS -> place[i] = LEFT; row[i] = RELEASED; left_by_word[i] = 1
    :: row[i] == RESERVED -> release_row(i); left_by_word[i] = 1
    :: else
    fi;
    printf("%e leaves: committed in SQL\n", NAME(i)); promises() };
#else
  end: if
  :: d_step { place[i] == WAITS ->
       place[i] = LEFT; move[i] = 1; passed_on[i] = 0; left_by_word[i] = 1;
#ifndef W_ID_NOT_SPENT
       row[i] = RELEASED;
#endif
       printf("%e leaves the line: committed, and in the outbox\n", NAME(i)); promises() }
  :: d_step { row[i] == RESERVED -> release_row(i); left_by_word[i] = 1; promises() }
  fi;
#endif
  PARK
}

/* lua/move.lua: gives back, and gives to who was promoted, in one step. False: to be repeated. */
inline follow(i) {
  if
  :: passed_on[i] > 0 && gate.record[passed_on[i] - 1] == NONE -> gate.serving = 0;
     printf("outbox: the gate has no record of %e, and is stopped\n", NAME(passed_on[i] - 1))
  :: else ->
     give_back(i);
     if
#ifdef W_SWAP_BLIND             /* LEFT_OUT: whoever was promoted takes a unit, whether or not it has one */
     :: passed_on[i] > 0 ->
        if :: gate.record[passed_on[i] - 1] == WAITS -> gate.waiting-- :: else fi;
        if :: gate.available > 0 -> gate.available--; gate.reserved++ :: else fi;
        gate.record[passed_on[i] - 1] = RESERVED; gate.unproven[passed_on[i] - 1] = 0
#else
     :: passed_on[i] > 0 && gate.record[passed_on[i] - 1] == WAITS ->
        gate.waiting--; gate.available--; gate.reserved++;
        gate.record[passed_on[i] - 1] = RESERVED; gate.unproven[passed_on[i] - 1] = 0
     :: passed_on[i] > 0 && gate.record[passed_on[i] - 1] != WAITS -> gate.unproven[passed_on[i] - 1] = 0
#endif
     :: else
     fi;
     printf("outbox: the gate follows %e's release\n", NAME(i))
  fi;
  promises()
}

/* Whoever was promoted waits in the gate, and there will be a unit for it: otherwise an earlier move comes first. */
#define CAN_FOLLOW(i) (passed_on[i] == 0 || gate.record[passed_on[i] - 1] != WAITS || gate.available > 0 \
  || gate.record[i] == RESERVED || gate.record[i] == TAKEN_OUT)

proctype Mover() {
  byte i;
  byte least_epoch;
  end: do
  :: d_step { CURRENT && gate.epoch >= epoch && move[ANN] -> i = ANN; least_epoch = epoch }; goto apply
  :: d_step { CURRENT && gate.epoch >= epoch && move[BOB] -> i = BOB; least_epoch = epoch }; goto apply
  od;
apply:
  if
  :: d_step { CURRENT && gate.epoch >= least_epoch && CAN_FOLLOW(i) -> follow(i);
       if :: gate.serving -> move[i] = 0 :: else fi; i = 0; least_epoch = 0 }
  :: d_step { !(CURRENT && gate.epoch >= least_epoch && CAN_FOLLOW(i)) ->
       printf("outbox: later\n"); i = 0; least_epoch = 0 }
  fi;
  goto end
}

/* Reads the first in line, takes a unit for it in Redis, and then in SQL. Dies between any two steps. */
proctype Promoter() {
  byte i;
  byte of_epoch;
  end: do
  :: d_step { CURRENT && (gate.available > 0 || gate.record[BOB] == TAKEN_OUT) && IS_FIRST(BOB) -> i = BOB };
     goto take
  :: d_step { CURRENT && (gate.available > 0 || gate.record[CLEO] == TAKEN_OUT) && IS_FIRST(CLEO) -> i = CLEO };
     goto take
  od;
take:
  if
  :: d_step { CURRENT && gate.record[i] == WAITS && gate.available > 0 ->
       gate.waiting--; gate.available--; gate.reserved++; gate.record[i] = TAKEN_OUT; gate.unproven[i] = 1;
       of_epoch = gate.epoch; printf("promoter: takes a unit for %e in Redis\n", NAME(i)); promises() }
  :: d_step { CURRENT && (gate.record[i] == TAKEN_OUT || gate.record[i] == RESERVED) -> of_epoch = gate.epoch;
       printf("promoter: %e has its unit already\n", NAME(i)) }
  :: d_step { !CURRENT || gate.record[i] == RELEASED || gate.record[i] == NONE ||
       (gate.record[i] == WAITS && gate.available == 0) -> i = 0 };
     goto end
  fi;
  if
  :: d_step { printf("promoter: dies before SQL knows\n"); i = 0; of_epoch = 0 }
#ifdef W_UNFENCED_PROMOTE       /* LEFT_OUT: whatever has become of the gate */
  :: d_step { place[i] == WAITS ->
#else
#ifdef W_PROMOTE_ANYWAY         /* LEFT_OUT: whether or not it still waits */
  :: d_step { epoch == of_epoch && row[i] != RESERVED ->
#else
  :: d_step { epoch == of_epoch && IS_FIRST(i) ->
#endif
#endif
       promote_row(i); gate.unproven[i] = (gate.epoch == of_epoch -> 0 : gate.unproven[i]);
       printf("promoter: %e is promoted in SQL\n", NAME(i)); promises(); i = 0; of_epoch = 0 }
  :: d_step { !(epoch == of_epoch && IS_FIRST(i)) ->
       printf("promoter: %e has been decided, or the gate was rebuilt\n", NAME(i)); i = 0; of_epoch = 0 }
  fi;
  goto end
}

/* Records whose row is not known to be committed; here they may be of any age. */
proctype Reaper() {
  byte i;
  byte of_epoch;
  end: do
  :: d_step { CURRENT && gate.unproven[BOB] -> i = BOB; of_epoch = gate.epoch }; goto look
  :: d_step { CURRENT && gate.unproven[CLEO] -> i = CLEO; of_epoch = gate.epoch }; goto look
  :: d_step { CURRENT && gate.unproven[DAN] -> i = DAN; of_epoch = gate.epoch }; goto look
  od;
look:
  if
#ifdef W_BURIES_WAITERS         /* LEFT_OUT: looks for a reservation only, and buries who waits */
  :: d_step { row[i] == NONE ->
       row[i] = RELEASED; if :: place[i] == WAITS -> place[i] = NONE :: else fi;
#else
  :: d_step { row[i] == NONE && place[i] == NONE ->
       row[i] = RELEASED;
#endif
       printf("reaper: a tombstone for %e is committed\n", NAME(i)); promises() };
     if
     :: d_step { CURRENT && gate.epoch == of_epoch -> give_back(i);
          printf("reaper: the gate gives back what %e had\n", NAME(i)); promises(); i = 0; of_epoch = 0 }
     :: d_step { !(CURRENT && gate.epoch == of_epoch) -> i = 0; of_epoch = 0 }
     fi
#ifndef W_BURIES_WAITERS
  :: d_step { place[i] == WAITS && gate.record[i] == TAKEN_OUT && epoch == of_epoch && IS_FIRST(i) ->
       promote_row(i); printf("reaper: completes the promotion of %e\n", NAME(i)); promises();
       if :: gate.epoch == of_epoch -> gate.unproven[i] = 0 :: else fi; i = 0; of_epoch = 0 }
  :: d_step { place[i] == WAITS && gate.record[i] == TAKEN_OUT && !(epoch == of_epoch && IS_FIRST(i)) ->
       i = 0; of_epoch = 0 }
  :: d_step { place[i] == WAITS && gate.record[i] != TAKEN_OUT ->
       if :: gate.epoch == of_epoch -> gate.unproven[i] = 0 :: else fi; i = 0; of_epoch = 0 }
#endif
  :: d_step { row[i] == RESERVED ->
       if :: gate.epoch == of_epoch -> gate.unproven[i] = 0 :: else fi; i = 0; of_epoch = 0 }
  :: d_step { row[i] == RELEASED && move[i] ->
       /* A move is to free it, and may pass it on: nobody else may give it back. */
       if :: gate.epoch == of_epoch -> gate.unproven[i] = 0 :: else fi; i = 0; of_epoch = 0 }
  :: d_step { (row[i] == RELEASED || place[i] == LEFT) && !move[i] ->
       if :: CURRENT && gate.epoch == of_epoch -> give_back(i) :: else fi;
       printf("reaper: %e's id is spent\n", NAME(i)); promises(); i = 0; of_epoch = 0 }
  fi;
  goto end
}

proctype Rebuild() {
  byte began_run;
  byte new_epoch;
  byte rows[IDS];
  byte places[IDS];
  end: do
  :: d_step { !CURRENT || gate.epoch != epoch ->
       began_run = redis_run; gate.serving = 0; printf("recalibration: begins, and stops the gate\n") };
     d_step { epoch++; new_epoch = epoch; printf("recalibration: epoch %d is committed\n", new_epoch) };
     d_step {
       rows[0] = row[0]; rows[1] = row[1]; rows[2] = row[2]; rows[3] = row[3];
       places[1] = place[1]; places[2] = place[2];
       printf("recalibration: counts\n") };
     d_step {
       if
       :: redis_run == began_run && !(gate.run_id == redis_run && gate.epoch >= new_epoch) ->
          gate.run_id = redis_run; gate.epoch = new_epoch; gate.serving = 1;
          gate.reserved = (rows[0] == RESERVED) + (rows[1] == RESERVED) + (rows[2] == RESERVED) +
            (rows[3] == RESERVED);
          gate.available = TOTAL - gate.reserved;
          gate.record[0] = rows[0]; gate.record[3] = rows[3];
#ifdef W_LINE_FORGOTTEN         /* LEFT_OUT: the line is not loaded */
          gate.waiting = 0; gate.record[1] = rows[1]; gate.record[2] = rows[2];
#else
          gate.waiting = (places[1] == WAITS) + (places[2] == WAITS);
          gate.record[1] = (places[1] == WAITS -> WAITS : rows[1]);
          gate.record[2] = (places[2] == WAITS -> WAITS : rows[2]);
#endif
          gate.unproven[1] = 0; gate.unproven[2] = 0; gate.unproven[3] = 0;
          printf("recalibration: its gate comes into service, %d available, %d waiting\n", gate.available,
            gate.waiting)
       :: else -> printf("recalibration: is out of date and changes nothing\n")
       fi;
       promises();
       rows[0] = 0; rows[1] = 0; rows[2] = 0; rows[3] = 0; places[1] = 0; places[2] = 0; new_epoch = 0; began_run = 0
     }
  od
}

inline copy(to, from) {
  to.run_id = from.run_id; to.epoch = from.epoch; to.serving = from.serving;
  to.available = from.available; to.reserved = from.reserved; to.waiting = from.waiting;
  to.record[0] = from.record[0]; to.record[1] = from.record[1];
  to.record[2] = from.record[2]; to.record[3] = from.record[3];
  to.unproven[1] = from.unproven[1]; to.unproven[2] = from.unproven[2]; to.unproven[3] = from.unproven[3]
}

proctype Restart() {
  byte times;
  end: do
  :: times < RESTARTS ->
     d_step { copy(disk, gate); printf("Redis: this is the last that reaches its disk\n") };
     d_step { copy(gate, disk); redis_run++; times++;
       disk.run_id = 0; disk.epoch = 0; disk.serving = 0; disk.available = 0; disk.reserved = 0; disk.waiting = 0;
       disk.record[0] = 0; disk.record[1] = 0; disk.record[2] = 0; disk.record[3] = 0;
       disk.unproven[1] = 0; disk.unproven[2] = 0; disk.unproven[3] = 0;
       printf("Redis: restarts and is back where its disk was\n"); promises() }
  od
}

/* When nothing is in flight: Redis equals SQL, line included, and nothing lies idle that somebody waits for. */
proctype Judge() {
  end: timeout ->
  d_step {
    printf("nothing is in flight any more\n");
    promise(!(move[ANN] || move[BOB]), "BROKEN I6: the outbox is stuck\n");
    promise(CURRENT && gate.epoch == epoch, "BROKEN I4: the gate stays closed\n");
    promise(gate.reserved == RESERVED_ROWS, "BROKEN I6: Redis and SQL differ in what is reserved\n");
    promise(gate.waiting == WAITING_ROWS, "BROKEN I6: Redis and SQL differ in who waits\n");
    promise(gate.available == 0 || WAITING_ROWS == 0, "BROKEN I7: a unit lies idle while somebody waits\n")
  }
}

init {
  d_step {
    gate.run_id = 1; gate.serving = 1; gate.reserved = 1; gate.record[ANN] = RESERVED; row[ANN] = RESERVED
  };
  atomic {
    if :: REPEATS > 0 -> run Buyer(BOB, 1, 2) :: else fi;
    run Buyer(BOB, 1, 1); run Buyer(CLEO, 1, 1); run Buyer(DAN, 0, 1);
    run Owner(); run Leave(BOB);
    run Mover(); run Promoter(); run Reaper(); run Rebuild(); run Restart(); run Judge()
  }
}
