-- Ids are random, so an index by id is written all over; one by the time of creation is written at its end.
DROP INDEX reservations_of_sale;
DROP INDEX reservations_unsold;
CREATE INDEX reservations_of_sale ON reservations (sale_id, create_time, reservation_id);
CREATE INDEX reservations_unsold ON reservations (sale_id, create_time, reservation_id) WHERE state = 'RESERVED';
