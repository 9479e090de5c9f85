-- name: fence
-- Checks the epoch, beats the heart and counts the commit in one row; no row changed means another runner took over.
UPDATE run SET heartbeat_at = :now, claims = claims + 1 WHERE id = 1 AND epoch = :epoch

-- name: acquire
UPDATE run SET epoch = epoch + 1, claims = claims + 1, holder = :holder, heartbeat_at = :now

-- name: insert_batches
INSERT INTO batch (number, lane, wave, parent, fresh, size, targets)

-- name: next_planned
-- One row of JSON, not one a batch: in a thread beside a busy loop each row waits for the interpreter's lock.
SELECT json_group_array(json_array(number, lane, wave, targets, parent, fresh)) FROM (
    SELECT number, lane, wave, targets, parent, fresh FROM batch
    WHERE number > :after AND NOT EXISTS (SELECT 1 FROM outcome WHERE outcome.batch = batch.number)
    ORDER BY number LIMIT :limit)

-- name: next_planned_again
-- As above, of what was on the wire before: `--limit` counts only the others.
SELECT json_group_array(json_array(number, lane, wave, targets, parent, fresh)) FROM (
    SELECT number, lane, wave, targets, parent, fresh FROM batch
    WHERE number > :after AND fresh = 0 AND NOT EXISTS (SELECT 1 FROM outcome WHERE outcome.batch = batch.number)
    ORDER BY number LIMIT :limit)

-- name: raise_mark
UPDATE run SET mark = max(mark, :last) WHERE id = 1

-- name: insert_claims
INSERT INTO claim (first, last, at, epoch) VALUES (?, ?, ?, ?)

-- name: record
INSERT INTO outcome (batch, state, devices, attempts, first_sent_at, settled_at, task_id, task_arn, code, message, held)

-- name: record_again
-- Only a doubt may be overwritten; a doubt keeps its earliest instant of sending.
ON CONFLICT (batch) DO UPDATE SET
    state = excluded.state, attempts = outcome.attempts + excluded.attempts,
    first_sent_at = min(outcome.first_sent_at, coalesce(excluded.first_sent_at, outcome.first_sent_at)), settled_at = excluded.settled_at,
    task_id = excluded.task_id, task_arn = excluded.task_arn, 
    code = iif(excluded.state = 'accepted', NULL, coalesce(excluded.code, outcome.code)),
    message = iif(excluded.state = 'accepted', NULL, coalesce(excluded.message, outcome.message)),
    held = excluded.held
WHERE outcome.state = 'in_doubt' AND excluded.state IN ('in_doubt', 'accepted')

-- name: recover_claims
-- Whatever a dead holder had claimed and not settled is in doubt since its earliest claim.
INSERT INTO outcome (batch, state, devices, attempts, first_sent_at, settled_at, code, message, held)
SELECT b.number, 'in_doubt', b.size, 0, min(c.at), :now, 'Interrupted', 'the process ended before an answer was recorded', :held
FROM claim c JOIN batch b ON b.number BETWEEN c.first AND c.last
WHERE NOT EXISTS (SELECT 1 FROM outcome o WHERE o.batch = b.number)
GROUP BY b.number

-- name: doubt_up_to
-- The checkpoint was lost or is older than the registry's mark: all of it may have been sent.
INSERT INTO outcome (batch, state, devices, attempts, first_sent_at, settled_at, code, message, held)
SELECT b.number, 'in_doubt', b.size, 0, :first_sent_at, :now, 'Rebuilt', 'sent by an earlier runner whose checkpoint is lost', :held
FROM batch b
WHERE b.number <= :mark AND NOT EXISTS (SELECT 1 FROM outcome o WHERE o.batch = b.number)

-- name: doubts
SELECT b.number, b.lane, b.wave, b.targets, b.parent, b.fresh, o.first_sent_at, o.attempts, o.code, o.message
FROM outcome o JOIN batch b ON b.number = o.batch
WHERE o.state = 'in_doubt' AND o.batch > :after AND b.removed = 0 AND (o.held IS NULL OR (o.held > 0 AND o.held <> :epoch))
ORDER BY o.batch LIMIT :limit

-- name: newest_doubt
-- Whether anything in doubt may still be resent: the youngest first sending decides.
SELECT max(o.first_sent_at) FROM outcome o JOIN batch b ON b.number = o.batch
WHERE o.state = 'in_doubt' AND b.removed = 0 AND o.held IS NOT 0

-- name: doubt_kinds
-- Devices in doubt by what may become of them; the earliest first sending of each kind.
SELECT CASE WHEN b.removed = 1 OR o.held = 0 THEN 'held'
            WHEN o.first_sent_at > :open_since THEN 'resendable' ELSE 'expired' END AS kind,
       sum(o.devices), min(o.first_sent_at)
FROM outcome o JOIN batch b ON b.number = o.batch
WHERE o.state = 'in_doubt' GROUP BY kind

-- name: outcome_counts
SELECT state, count(*), sum(devices) FROM outcome GROUP BY state

-- name: batch_counts
SELECT count(*), coalesce(sum(size), 0) FROM batch

-- name: unsettled_claimed
-- A live run's claimed batches, or a dead one's: not settled, so in doubt.
SELECT coalesce(sum(size), 0) FROM (
    SELECT DISTINCT b.number, b.size FROM claim c JOIN batch b ON b.number BETWEEN c.first AND c.last
    WHERE NOT EXISTS (SELECT 1 FROM outcome o WHERE o.batch = b.number))

-- name: removed_rejected
-- Devices that were rejected and then taken out of the manifest: no longer judged.
SELECT coalesce(sum(o.devices), 0) FROM outcome o JOIN batch b ON b.number = o.batch
WHERE b.removed = 1 AND o.state = 'rejected'

-- name: rows
SELECT b.number, b.lane, b.wave, b.targets, b.removed, o.state, o.attempts, o.first_sent_at, o.settled_at,
       o.task_id, o.task_arn, o.code, o.message,
       EXISTS (SELECT 1 FROM claim c WHERE b.number BETWEEN c.first AND c.last), o.held
FROM batch b LEFT JOIN outcome o ON o.batch = b.number
WHERE o.state IS NOT 'split' AND b.number > :after ORDER BY b.number

-- name: batch_with_outcome
SELECT b.lane, b.wave, b.fresh, b.targets, o.state, o.devices, o.attempts, o.first_sent_at, o.settled_at,
       o.task_id, o.task_arn, o.code, o.message, o.held
FROM batch b LEFT JOIN outcome o ON o.batch = b.number WHERE b.number = :number

-- name: park_like
UPDATE batch SET removed = (SELECT removed FROM batch WHERE number = :parent) WHERE number = :child

-- name: highest_outcome
SELECT coalesce(max(batch), 0) FROM outcome WHERE batch <= :up_to

-- name: last_number
SELECT coalesce(max(number), 0) FROM batch

-- name: settled_since
SELECT count(*) FROM outcome WHERE settled_at > :since AND batch > (SELECT max(batch) FROM outcome) - 20000
