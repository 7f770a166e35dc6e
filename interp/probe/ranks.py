"""AUROC, average precision and best F1 of every pair: exact, one sorted scan per latent for all classes.

A probe's score is monotone in x, so every ranking question about a pair is a question about the latent's
sorted values: "how many rows score higher" is a position in the sort, the same for all classes. The rows
where a latent is zero are one tie. Nothing of shape (events × classes) or (rows × classes) is ever made.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from interp.probe.confusion import sorted_by_value

__all__ = ["rank_metrics"]


def rank_metrics(
    block: sp.csc_array, labels: Any, coef: np.ndarray, class_counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AUROC, average precision and best F1 of some latents of which all events are at hand.

    Parameters
    ----------
    block : csc_array, shape [n_rows, n_latents]
    labels : ndarray of int, shape [n_rows], or csr_array, shape [n_rows, n_classes]
    coef : ndarray of float64, shape [n_latents, n_classes]
        Only its sign matters.
    class_counts : ndarray of int64, shape [n_classes]

    Returns
    -------
    auroc, ap, best_f1 : ndarray of float64, shape [n_latents, n_classes]
        NaN where they are not defined.
    """
    return _Scan(block, labels, class_counts).ranks(coef)


class _Scan:
    """Some latents' events, sorted by value within each latent, and again within each (latent, class).

    Attributes
    ----------
    value : ndarray, shape [n_events]
        Sorted within ``indptr[l] … indptr[l + 1]``.
    at : ndarray of int, shape [n_incidences]
        For each (event, class of its row), grouped by pair and sorted by value: the event's position.
    own_indptr : ndarray of int64, shape [n_pairs + 1]
        Where the incidences of each pair begin in `at`.
    """

    def __init__(self, block: sp.csc_array, labels: Any, class_counts: np.ndarray) -> None:
        self.n_rows, n_latents = block.shape
        self.class_counts = class_counts
        self.indptr = block.indptr.astype(np.int64)
        counts = np.diff(self.indptr)
        self.n_zero = self.n_rows - counts
        n_classes = len(class_counts)
        n_pairs = n_latents * n_classes
        if sp.issparse(labels):
            order = np.lexsort((block.data, np.repeat(np.arange(n_latents), counts)))
            self.value, rows = block.data[order], block.indices[order]
            n_labels = np.diff(labels.indptr)[rows]
            event = np.repeat(np.arange(len(rows)), n_labels)
            inside = np.arange(len(event)) - np.repeat(np.cumsum(n_labels) - n_labels, n_labels)
            label = labels.indices[np.repeat(labels.indptr[rows], n_labels) + inside]
            pair = (_event_latent(self.indptr)[event] * n_classes + label).astype(np.int32)
            order, self.own_indptr = _counting_sort(pair, n_pairs)
            self.at = event[order]
        else:
            own_labels = labels.take(block.indices, mode="clip")
            latent = _event_latent(self.indptr)
            self.value, label = sorted_by_value(latent, block.data, own_labels)
            pair = latent * np.int32(n_classes) + label
            self.at, self.own_indptr = _counting_sort(pair, n_pairs)
        self.own = np.diff(self.own_indptr).reshape(n_latents, n_classes)

    def ranks(self, coef: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """AUROC, average precision and best F1 of every pair.

        With zeros below every positive value, an event at position p of its latent, k-th of its pair's
        own, has (constant of the latent) + p rows below it, (constant of the pair) + k of them its own.
        So everything is a sum over the pair's incidences of p, or of a ratio of two such numbers.
        """
        shape, n = coef.shape, float(self.n_rows)
        total = np.broadcast_to(self.class_counts.astype(np.float64), shape)
        zero_own = total - self.own
        n_zero = np.broadcast_to(self.n_zero[:, None].astype(np.float64), shape)
        begin = np.broadcast_to(self.indptr[:-1, None].astype(np.float64), shape)
        own_begin = self.own_indptr[:-1].reshape(shape).astype(np.float64)
        filled = np.flatnonzero(self.own.ravel())
        own, group = self.own.ravel()[filled], self.own_indptr[:-1][filled]

        def spread(per_pair: np.ndarray) -> np.ndarray:
            """One value per incidence from one per pair."""
            return np.repeat(per_pair.ravel()[filled], own)

        def gather(ufunc: np.ufunc, per_incidence: np.ndarray) -> np.ndarray:
            """One value per pair from one per incidence; 0 for a pair without events."""
            result = np.zeros(coef.size)
            if len(group):
                result[filled] = ufunc.reduceat(per_incidence, group)
            return result.reshape(shape)

        place, up = self.at.astype(np.float64), coef > 0
        sum_of_places = gather(np.add, place) + 0.5 * self.own
        tied, pair, first, last, own_first, own_last = self._ties()
        if len(tied):
            between = 0.5 * (first + last) - (place[tied] + 0.5)
            sum_of_places += np.bincount(pair, between, coef.size).reshape(shape)
        n_negative = own_negative = np.zeros((1, 1))
        negative = self._negative()
        if negative is not None:
            own_negative = gather(np.add, negative.astype(np.float64))
            n_negative = np.add.reduceat(np.append(self.value < 0, False), self.indptr[:-1], dtype=np.float64)
            n_negative = np.where(np.diff(self.indptr) > 0, n_negative, 0.0)[:, None]

        # Rows that score below, summed over the own events: positions, and zeros below the positive ones.
        rank_sum = sum_of_places + self.own * (0.5 - begin) + (self.own - own_negative) * n_zero
        rank_sum += zero_own * (n_negative + 0.5 * (n_zero + 1.0))
        with np.errstate(divide="ignore", invalid="ignore"):
            auroc = (rank_sum - 0.5 * total * (total + 1.0)) / (total * (n - total))
            auroc = np.where(coef > 0, auroc, 1.0 - auroc)

            # Rows at or above an event in score, all and own: counted from the top where the slope is
            # positive, from the bottom where it is not; of ties, all.
            predicted = spread(np.where(up, -1.0, 1.0))
            hits = predicted * np.arange(len(place), dtype=np.float64)
            hits += spread(np.where(up, total - zero_own + own_begin, zero_own - own_begin + 1.0))
            predicted *= place
            predicted += spread(np.where(up, n - n_zero + begin, n_zero - begin + 1.0))
            if len(tied):
                rising = up.ravel()[pair]
                hits[tied] += np.where(rising, tied - own_first, own_last - tied - 1)
                predicted[tied] += np.where(rising, place[tied] - first, last - place[tied] - 1.0)
            if negative is not None:  # zeros lie above a negative value
                hits += np.where(negative, spread(np.where(up, zero_own, -zero_own)), 0.0)
                predicted += np.where(negative, spread(np.where(up, n_zero, -n_zero)), 0.0)
            hits_zero = np.where(up, total - own_negative, own_negative + zero_own)
            predicted_zero = np.where(up, n - n_negative, n_negative + n_zero)
            ap = gather(np.add, hits / predicted)
            ap += np.where(zero_own > 0, zero_own * hits_zero / predicted_zero, 0.0)
            ap = ap / total
            best = np.where(zero_own > 0, 2.0 * hits_zero / (predicted_zero + total), 0.0)
            predicted += spread(total)
            hits /= predicted
            best = np.maximum(best, 2.0 * gather(np.maximum, hits))
            # A constant score ranks nothing: one threshold, everything or nothing.
            constant = coef == 0
            auroc = np.where((total == 0) | (total == n), np.nan, np.where(constant, 0.5, auroc))
            ap = np.where(total == 0, np.nan, np.where(constant, total / n, ap))
            return auroc, ap, np.where(constant, 2.0 * total / (n + total), best)

    def _negative(self) -> np.ndarray | None:
        """Which incidences have negative values; None where no event has one."""
        starts = self.indptr[:-1][np.diff(self.indptr) > 0]
        some = bool((self.value[starts] < 0).any())  # each latent's smallest value
        return self.value[self.at] < 0 if some else None

    def _ties(self) -> tuple[np.ndarray, ...]:
        """Incidences of events whose value their latent has more than once: six arrays of int, [n_tied].

        Which they are and of which pair; then where the run of equal values begins and where it ends, among
        the events, and the same among the incidences of the pair. Most values are alone.
        """
        again = np.zeros(len(self.value) + 1, bool)  # continues the run before it
        np.equal(self.value[1:], self.value[:-1], out=again[1:-1])
        again[self.indptr[:-1]] = False
        several = again[:-1] | again[1:]
        tied = np.flatnonzero(several.take(self.at, mode="clip"))
        events = np.flatnonzero(several)
        first, last = _bounds(events, again[events])
        number = np.empty(len(several), np.int32)
        number[events] = np.arange(len(events))
        number = number[self.at[tied]]
        first, last = first[number], last[number]
        pair = np.repeat(np.arange(self.own.size, dtype=np.int32), self.own.ravel())[tied]
        own_again = np.zeros(len(tied), bool)
        own_again[1:] = (first[1:] == first[:-1]) & (pair[1:] == pair[:-1])
        return tied, pair, first, last, *_bounds(tied, own_again)


def _bounds(position: np.ndarray, again: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the run of each position begins and ends; runs are consecutive, `again` continues one."""
    starts = np.flatnonzero(~again)
    sizes = np.diff(starts, append=len(position))
    begin = position[starts]
    return np.repeat(begin, sizes), np.repeat(begin + sizes, sizes)


def _event_latent(indptr: np.ndarray) -> np.ndarray:
    """The latent of each event, int32."""
    return np.repeat(np.arange(len(indptr) - 1, dtype=np.int32), np.diff(indptr))


def _counting_sort(key: np.ndarray, n_keys: int) -> tuple[np.ndarray, np.ndarray]:
    """Stable order of integer keys below `n_keys`, in linear time, and where each key's part begins."""
    position = np.arange(len(key), dtype=np.int32)
    indptr = np.array([0, len(key)], np.int32)
    by_key = sp.csr_array((position, key, indptr), shape=(1, n_keys)).tocsc()
    return by_key.data, by_key.indptr.astype(np.int64)
