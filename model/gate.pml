/*
 * The stock of one sale: the Redis gate, the reservations in SQL, and what keeps the two together.
 *
 * What each process stands for
 *   Call      BatchReserveShares for one id       inventory_svc/reserving.py, lua/reserve.lua, reservation_book.insert
 *   Settle    the owner of a reserved purchase    reservation_book.confirm / release, then gate_moves.follow
 *   Mover     the outbox, repeated until done     inventory_svc/gate_moves.py, lua/move.lua
 *   Reaper    grants whose row never came         inventory_svc/reaper.py, reservation_book.bury, lua/move.lua
 *   Rebuild   recalibration of the gate           inventory_svc/recalibration.py, lua/close.lua, lua/switch.lua
 *   Restart   Redis comes back behind             the end of the append-only file is lost, the keys are there
 *   Judge     nothing can happen any more         Redis must equal SQL
 *
 * Ann asks twice with one request id (a repetition, or a call that overlaps with its own repetition); Bob asks once.
 * Each wants one unit. Every process may die between any two of its steps, except those that are started again.
 * A step is what one script, one statement or one commit does. A failure is never told from a lost answer.
 *
 * Bounds: TOTAL units, RESTARTS of Redis, ASKED recalibrations beside the one that the watch begins.
 *
 * Each of the five rules can be left out: -D with a name from the list in check.py, marked LEFT_OUT below.
 */
#ifndef TOTAL
#define TOTAL 1
#endif
#ifndef RESTARTS
#define RESTARTS 1
#endif
#ifndef REPEATS
#define REPEATS 1
#endif
#ifndef ASKED
#define ASKED 0
#endif

mtype = { Ann, Bob };
/* A record of the gate and a row of SQL. NONE is no record, no row. */
#define NONE 0
#define RESERVED 1
#define SOLD 2
#define RELEASED 3
#define IDS 2
/* A process that has nothing more to do. It stays: the order in which processes vanish would only add states. */
#define PARK end_parked: false
#define NAME(i) ((i) == 0 -> Ann : Bob)

/* Redis: the gate of the sale. Records and unproven grants belong to the epoch in service. */
typedef Gate {
  byte run_id; byte epoch; bool serving;
  byte available; byte reserved; byte sold;
  byte record[IDS]; bool unproven[IDS];
  /* What recalibrations have loaded and not yet switched to, by their number. */
  bool loaded[2]
};
Gate gate;
Gate disk;          /* what a restart brings back */
byte redis_run = 1;       /* which run of the server this is; INFO's run_id */

/* SQL, as committed. */
byte epoch;                     /* sale_epochs.epoch */
byte row[IDS];                  /* reservations.state */
bool move_sold[IDS];            /* gate_moves, the outbox */
bool move_released[IDS];
/* Locks of transactions under way. */
byte sharing;                   /* inserts that hold FOR SHARE on the epoch's row */
bool bumping;                   /* a recalibration that has updated the epoch's row and not committed */
bool inserting[IDS];            /* an uncommitted row of this id: another insert of it waits */
bool answered[IDS];             /* somebody was told that its units are reserved */

#ifdef R3_NO_RUN_ID             /* LEFT_OUT: scripts trust any keys they find */
#define CURRENT (gate.serving)
#else
#define CURRENT (gate.serving && gate.run_id == redis_run)
#endif
#define TAKEN(state) ((state) == RESERVED || (state) == SOLD)
#define UNITS_TAKEN (TAKEN(row[0]) + TAKEN(row[1]))

#define promise(condition, broken) if :: (condition) :: else -> printf(broken); assert(false) fi

/* After every change: I1, I6, I4 (what was answered is durable). */
inline promises() {
  promise(UNITS_TAKEN <= TOTAL, "BROKEN I1: SQL has more units reserved or sold than there are\n");
  promise(!CURRENT || gate.available + gate.reserved + gate.sold == TOTAL,
    "BROKEN I6: available + reserved + sold is not the total\n");
#ifndef R4_FORGET_RELEASED
  promise((!answered[0] || row[0] != NONE) && (!answered[1] || row[1] != NONE),
    "BROKEN I4: an answered reservation is not durable\n")
#endif
}

/* lua/move.lua for a release: acts on a record that is present and not yet released. */
inline free_unit(i) {
#ifdef R1_NO_RECORD_CHECK       /* LEFT_OUT: gives back whatever the record says */
  if
  :: gate.reserved > 0 -> gate.reserved--; gate.available++
  :: else -> if :: gate.sold > 0 -> gate.sold--; gate.available++ :: else fi
  fi;
  gate.record[i] = RELEASED;
#else
  if
  :: gate.record[i] == RESERVED -> gate.reserved--; gate.available++; gate.record[i] = RELEASED
  :: gate.record[i] == SOLD -> gate.sold--; gate.available++; gate.record[i] = RELEASED
  :: else
  fi;
#endif
#ifdef R4_FORGET_RELEASED
  if :: gate.record[i] == RELEASED -> gate.record[i] = NONE :: else fi;
#endif
  gate.unproven[i] = 0
}

/* lua/move.lua for a sale. */
inline sell_unit(i) {
  if
  :: gate.record[i] == RESERVED -> gate.reserved--; gate.sold++; gate.record[i] = SOLD
  :: else
  fi;
  gate.unproven[i] = 0
}

/* One call of BatchReserveShares with one wish. */
proctype Call(byte i; mtype who; byte number) {
  byte granted_epoch;
  byte found;

#ifdef R1_TAKE_SQL_FIRST        /* LEFT_OUT: the row first, then the unit */
  d_step { !bumping && !inserting[i] ->
    printf("%e's call %d: writes the row in SQL before it has a unit\n", who, number);
    if :: row[i] == NONE -> row[i] = RESERVED :: else fi;
    promises()
  };
#endif
  /* lua/reserve.lua */
  if
  :: d_step { !CURRENT -> printf("%e's call %d: the gate is not current, try again later\n", who, number) };
     goto over
  :: d_step { CURRENT && gate.record[i] == NONE && gate.available == 0 ->
       printf("%e's call %d: sold out\n", who, number) };
     goto over
  :: d_step { CURRENT && gate.record[i] == RELEASED -> printf("%e's call %d: the id is spent\n", who, number) };
     goto over
  :: d_step { CURRENT && gate.record[i] == NONE && gate.available > 0 ->
       gate.available--; gate.reserved++; gate.record[i] = RESERVED; gate.unproven[i] = 1;
       granted_epoch = gate.epoch;
       printf("%e's call %d: the gate grants a unit under epoch %d\n", who, number, granted_epoch);
       promises()
     }
  :: d_step { CURRENT && TAKEN(gate.record[i]) ->
       granted_epoch = gate.epoch;
       printf("%e's call %d: the gate says granted earlier, epoch %d\n", who, number, granted_epoch) }
  fi;

  /* The INSERT: fenced by the epoch under FOR SHARE, ON CONFLICT DO NOTHING. */
  if
  :: d_step {
#if defined(R3_NO_SHARE_LOCK) || defined(R3_NO_EPOCH)
       !inserting[i] ->         /* LEFT_OUT: does not wait for a bump under way */
#else
       !bumping && !inserting[i] ->
#endif
       if
#ifndef R3_NO_EPOCH             /* LEFT_OUT: the epoch is not looked at */
       :: epoch != granted_epoch -> found = 255;
          printf("%e's call %d: INSERT finds another epoch and writes nothing\n", who, number)
#endif
       :: else ->
          found = row[i];
          if
          :: found == NONE ->
             inserting[i] = 1;
#if !defined(R3_NO_SHARE_LOCK) && !defined(R3_NO_EPOCH)
             sharing++;
#endif
             printf("%e's call %d: INSERT has written its row and not yet committed\n", who, number)
          :: else -> printf("%e's call %d: INSERT finds the row of its id\n", who, number)
          fi
       fi
     }
  :: d_step { printf("%e's call %d: dies before its INSERT\n", who, number) }; goto failed
  fi;
  if
  :: found == 255 -> goto over
  :: found == RELEASED -> goto spent
  :: found == RESERVED || found == SOLD ->
     d_step { answered[i] = 1; printf("%e's call %d: is answered: reserved\n", who, number); promises() };
     goto over
  :: found == NONE
  fi;
  if
  :: d_step {
       row[i] = RESERVED; inserting[i] = 0;
#if !defined(R3_NO_SHARE_LOCK) && !defined(R3_NO_EPOCH)
       sharing--;
#endif
       answered[i] = 1;
       printf("%e's call %d: the INSERT is committed and the call is answered: reserved\n", who, number);
       promises()
     };
     goto over
  :: d_step {
       inserting[i] = 0;
#if !defined(R3_NO_SHARE_LOCK) && !defined(R3_NO_EPOCH)
       sharing--;
#endif
       printf("%e's call %d: the INSERT fails\n", who, number)
     };
     goto failed
  fi;

spent:  /* reserving._give_back: the committed row says that the id can never have a unit */
  if
  :: d_step { CURRENT && gate.epoch == granted_epoch ->
       free_unit(i); printf("%e's call %d: gives the spent grant back\n", who, number); promises() }
  :: skip
  fi;
  goto over;

failed:
#ifdef R2_GIVE_BACK_ON_FAILURE  /* LEFT_OUT: a failed INSERT gives its unit back by itself */
  if
  :: d_step { CURRENT && gate.epoch == granted_epoch ->
       free_unit(i); printf("%e's call %d: gives its unit back because its INSERT failed\n", who, number); promises() }
  :: skip
  fi;
#endif
over:
  PARK
}

/* reservation_book.release. */
inline release(i) {
  row[i] = RELEASED; move_released[i] = 1;
#ifdef R4_FORGET_RELEASED       /* LEFT_OUT: a release is not remembered, its id may be reserved again */
  row[i] = NONE;
#endif
  printf("%e's purchase: RELEASED is committed in SQL, and in the outbox\n", NAME(i));
  promises()
}

/* Settlement or a cancel: what becomes of a reserved purchase. */
proctype Settle(byte i) {
  end: if
  :: d_step { row[i] == RESERVED ->
       row[i] = SOLD; move_sold[i] = 1;
       printf("%e's purchase: SOLD is committed in SQL, and in the outbox\n", NAME(i)); promises() };
     if
     :: d_step { release(i) }
     :: skip
     fi
#ifdef R1_GIVE_REDIS_FIRST      /* LEFT_OUT: Redis first, then SQL */
  :: d_step { row[i] == RESERVED && CURRENT && TAKEN(gate.record[i]) ->
       free_unit(i); printf("%e's purchase: its unit is given back in Redis, before SQL\n", NAME(i)); promises() };
     d_step { row[i] = RELEASED; printf("%e's purchase: RELEASED is committed in SQL\n", NAME(i)); promises() }
#else
  :: d_step { row[i] == RESERVED -> release(i) }
#endif
  fi;
  PARK
}

/* The outbox. Reads the epoch after the commit, applies, and only then forgets. A try that must fail is left out. */
#ifdef R1_NO_CURRENT_CHECK      /* LEFT_OUT: moves whatever gate it finds */
#define FOLLOWS(least) true
#else
#define FOLLOWS(least) (CURRENT && gate.epoch >= (least))
#endif

inline read_epoch(which, is_sale) {
  i = which; sale = is_sale; least_epoch = epoch;
  printf("outbox: reads epoch %d for the move of %e's purchase\n", least_epoch, NAME(i))
}

inline follow() {
  if
  :: sale -> sell_unit(i); printf("outbox: the gate follows the sale of %e's purchase\n", NAME(i))
  :: else -> free_unit(i); printf("outbox: the gate follows the release of %e's purchase\n", NAME(i))
  fi;
  promises()
}

proctype Mover() {
  byte least_epoch;
  byte i;
  bool sale;
  bool stumbled;
  end: do
  :: d_step { FOLLOWS(epoch) && move_sold[0] -> read_epoch(0, 1) }; goto apply
  :: d_step { FOLLOWS(epoch) && move_released[0] -> read_epoch(0, 0) }; goto apply
  :: d_step { FOLLOWS(epoch) && move_sold[1] -> read_epoch(1, 1) }; goto apply
  :: d_step { FOLLOWS(epoch) && move_released[1] -> read_epoch(1, 0) }; goto apply
  od;
apply:
  if
  :: d_step { FOLLOWS(least_epoch) ->
       follow();
       if :: sale -> move_sold[i] = 0 :: else -> move_released[i] = 0 fi;
       i = 0; least_epoch = 0; sale = 0 }
  :: d_step { FOLLOWS(least_epoch) && !stumbled ->
       follow();
       printf("outbox: dies before it has forgotten the move\n"); stumbled = 1;
       i = 0; least_epoch = 0; sale = 0 }
  :: d_step { !FOLLOWS(least_epoch) ->
       printf("outbox: the gate is not current, later\n"); i = 0; least_epoch = 0; sale = 0 }
  fi;
  goto end
}

/* Grants whose row is not known to be committed. Here they may be of any age: no promise depends on the delay. */
inline find_grant(which) {
  i = which; of_epoch = gate.epoch;
  printf("reaper: finds the grant of %e, epoch %d\n", NAME(i), of_epoch)
}

#ifdef R2_NO_TOMBSTONE          /* LEFT_OUT: looks whether there is a row, and writes none */
#define MAY_READ(i) true
#else
#define MAY_READ(i) (!inserting[i])
#endif

proctype Reaper() {
  byte i;
  byte of_epoch;
  end: do
  :: d_step { CURRENT && gate.unproven[0] -> find_grant(0) }; goto bury
  :: d_step { CURRENT && gate.unproven[1] -> find_grant(1) }; goto bury
  od;
bury:
  if
  :: d_step { MAY_READ(i) && !TAKEN(row[i]) ->
#ifdef R2_NO_TOMBSTONE
       printf("reaper: sees no row of %e, and writes none\n", NAME(i))
#else
       row[i] = RELEASED; printf("reaper: a tombstone for %e is committed in SQL\n", NAME(i)); promises()
#endif
     }
  :: d_step { MAY_READ(i) && TAKEN(row[i]) ->
       printf("reaper: %e's row is there\n", NAME(i));
       if :: gate.epoch == of_epoch -> gate.unproven[i] = 0 :: else fi;
       i = 0; of_epoch = 0 };
     goto end
  fi;
  if
  :: d_step { CURRENT && gate.epoch == of_epoch ->
       free_unit(i); printf("reaper: the gate gives %e's unit back\n", NAME(i)); promises();
       i = 0; of_epoch = 0 }
  :: d_step { !(CURRENT && gate.epoch == of_epoch) -> printf("reaper: the gate was rebuilt meanwhile\n");
       i = 0; of_epoch = 0 }
  fi;
  goto end
}

/*
 * Recalibration. Number 0 is begun by the watch whenever a gate is not current; number 1 once, because somebody asks,
 * and leases stop neither: two processes may be at it at once. Loading is folded into the count: until the switch
 * nobody reads what is loaded. "Loaded" stands for what HLEN in the switch and the sentinels in the prelude see.
 */
inline count() {
  counted[0] = row[0]; counted[1] = row[1]; gate.loaded[number] = 1;
  printf("recalibration %d: counts %d units, and loads them under names of their own\n", number,
    TAKEN(counted[0]) + TAKEN(counted[1]))
}

proctype Rebuild(byte number) {
  byte began_run;
  byte new_epoch;
  byte counted[IDS];
  end: do
  :: d_step { (number == 1 || !CURRENT || gate.epoch != epoch) ->
       began_run = redis_run; gate.serving = 0;
       printf("recalibration %d: begins in run %d of Redis and stops the gate\n", number, redis_run) };
#ifdef R3_COUNT_FIRST           /* LEFT_OUT: counts in the statement that then waits for the epoch's row */
     d_step { count() };
#endif
#ifdef R3_COUNT_BEFORE_COMMIT   /* LEFT_OUT: counts while nobody else can see the new epoch yet */
     d_step { !bumping && sharing == 0 -> bumping = 1;
       printf("recalibration %d: bumps the epoch to %d, not yet committed\n", number, epoch + 1) };
     d_step { count() };
#endif
     if
     :: d_step { bumping || sharing == 0 -> epoch++; new_epoch = epoch; bumping = 0;
          printf("recalibration %d: epoch %d is committed\n", number, new_epoch) }
     :: d_step { number == 1 -> bumping = 0; printf("recalibration %d: dies before it commits\n", number) }; goto over
     fi;
     if
#if !defined(R3_COUNT_FIRST) && !defined(R3_COUNT_BEFORE_COMMIT)
     :: d_step { count() }
#else
     :: skip
#endif
     :: d_step { number == 1 -> gate.loaded[1] = 0; printf("recalibration %d: dies\n", number) }; goto over
     fi;
     d_step {
#ifdef R3_SWITCH_ANYWAY         /* LEFT_OUT: run id, epoch and completeness are not looked at */
       if
       :: true ->
#else
       if
#ifdef R3_SWITCH_NO_RUN
       :: !(gate.run_id == redis_run && gate.epoch >= new_epoch) && gate.loaded[number] ->
#else
#ifdef R3_SWITCH_NO_EPOCH
       :: redis_run == began_run && gate.loaded[number] ->
#else
       :: redis_run == began_run && !(gate.run_id == redis_run && gate.epoch >= new_epoch) && gate.loaded[number] ->
#endif
#endif
#endif
          gate.run_id = redis_run; gate.epoch = new_epoch; gate.serving = 1;
          gate.reserved = (counted[0] == RESERVED) + (counted[1] == RESERVED);
          gate.sold = (counted[0] == SOLD) + (counted[1] == SOLD);
          gate.available = TOTAL - gate.reserved - gate.sold;
          if
          :: gate.loaded[number] -> gate.record[0] = counted[0]; gate.record[1] = counted[1]
          :: else -> gate.record[0] = NONE; gate.record[1] = NONE
          fi;
          gate.unproven[0] = 0; gate.unproven[1] = 0;
          printf("recalibration %d: its gate of epoch %d comes into service, %d available\n", number, new_epoch,
            gate.available)
       :: else -> printf("recalibration %d: is out of date and changes nothing\n", number)
       fi;
       gate.loaded[number] = 0;
       promises();
       counted[0] = 0; counted[1] = 0; new_epoch = 0; began_run = 0
     };
     if :: number == 1 -> goto over :: else fi
  od;
over:
  PARK
}

inline copy(to, from) {
  to.run_id = from.run_id; to.epoch = from.epoch; to.serving = from.serving;
  to.available = from.available; to.reserved = from.reserved; to.sold = from.sold;
  to.record[0] = from.record[0]; to.record[1] = from.record[1];
  to.unproven[0] = from.unproven[0]; to.unproven[1] = from.unproven[1];
  to.loaded[0] = from.loaded[0]; to.loaded[1] = from.loaded[1]
}

/* The machine dies: Redis comes back with what its log had at some earlier moment. */
proctype Restart() {
  byte times;
  end: do
  :: times < RESTARTS ->
     d_step { copy(disk, gate); printf("Redis: this is the last that reaches its disk\n") };
     d_step { copy(gate, disk); redis_run++; times++;
       disk.run_id = 0; disk.epoch = 0; disk.serving = 0; disk.available = 0; disk.reserved = 0; disk.sold = 0;
       disk.record[0] = 0; disk.record[1] = 0; disk.unproven[0] = 0; disk.unproven[1] = 0;
       disk.loaded[0] = 0; disk.loaded[1] = 0;
       printf("Redis: restarts and is back where its disk was\n"); promises() }
  od
}

/* When nothing is in flight: I6 (Redis equals SQL) and I7 (what nobody has can be sold). */
proctype Judge() {
  end: timeout ->
  d_step {
    printf("nothing is in flight any more\n");
    promise(row[0] != RESERVED && row[1] != RESERVED, "BROKEN I4: a reservation stays open for ever\n");
    promise(!(move_sold[0] || move_sold[1] || move_released[0] || move_released[1]),
      "BROKEN I6: the outbox is stuck\n");
    promise(CURRENT && gate.epoch == epoch, "BROKEN I4: the gate stays closed\n");
    promise(gate.available <= TOTAL - UNITS_TAKEN, "BROKEN I6: Redis offers more than SQL has\n");
    promise(gate.available >= TOTAL - UNITS_TAKEN, "BROKEN I7: a unit is lost, SQL has more available than Redis\n");
    promise(gate.reserved == (row[0] == RESERVED) + (row[1] == RESERVED),
      "BROKEN I6: Redis and SQL differ in what is reserved\n");
    promise(gate.sold == (row[0] == SOLD) + (row[1] == SOLD),
      "BROKEN I6: Redis and SQL differ in what is sold\n")
  }
}

init {
  d_step { gate.run_id = 1; gate.serving = 1; gate.available = TOTAL };
  atomic {
    run Call(1, Bob, 1);
    if :: REPEATS > 0 -> run Call(0, Ann, 2) :: else fi;
    run Call(0, Ann, 1);
    run Settle(0); run Settle(1);
    run Mover(); run Reaper(); run Rebuild(0); run Restart(); run Judge();
    if :: ASKED > 0 -> run Rebuild(1) :: else fi
  }
}
