//! One child's life: (phase, event) → (phase, actions). Decides, does nothing: no system call, no clock, no lock.
//!
//! ```text
//!             Stop                 Exited               StreamsDone
//!   Running ───────▶ Stopping ───────────▶ Draining ────────────────▶ Done
//!      │                                      ▲
//!      └──────────────── Exited ──────────────┘ ◀───────────────────┘
//!                                                     Reopened
//! ```

/// Where a child is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Started, and nobody has asked it to stop.
    Running,
    /// A stop is under way: some of its steps were taken.
    Stopping,
    /// Dead and reported; its captured streams are being read to their end.
    Draining,
    /// Dead, and its streams are complete or cut.
    Done,
}

/// What can happen to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A context fired, a deadline passed, a limit was exceeded, or somebody asked.
    Stop,
    /// The time of the current step of the stop is over.
    StepDue,
    /// `wait_delay` is over.
    DelayOver,
    /// Its exit was seen.
    Exited,
    /// All its captured and fed streams have ended or were cut.
    StreamsDone,
    /// Pipes that nobody had taken are to be read after all.
    Reopened,
}

/// What has to be done about it, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start the `wait_delay` clock, unless it already runs; if it is over, [`Event::DelayOver`] follows.
    StartDelay,
    /// Take the next step of the stop: send, close or call, and arm the time it has.
    NextStep,
    /// SIGKILL, now.
    Kill,
    /// The deadline and the retries have nothing more to do.
    DisarmDeadline,
    /// Tell everybody who waits for the death.
    PublishExit,
    /// The stop goes on without its leader: what is left of it is for the rest of the group.
    StopGroup,
    /// What a child that ended by itself has left in a cgroup of its own is stopped, too.
    StopTree,
    /// Note how much the child left in its pipes; if there are none, [`Event::StreamsDone`] follows.
    Drain,
    /// As `Drain`, for a child that was asked to stop, whether or not anything was sent: unless a delay gives them time, as `CutStreams`.
    DrainStopped,
    /// Read what the child itself left in its pipes, and no more; then close them. [`Event::StreamsDone`] follows.
    CutStreams,
    /// Tell everybody who waits for the output, and give the slot back.
    Finish,
}

/// The table. Every cell is written out: a new phase or event does not compile until somebody has thought about it.
pub(crate) fn step(phase: Phase, event: Event) -> (Phase, &'static [Action]) {
    use Action::*;
    match (phase, event) {
        (Phase::Running, Event::Stop) => (Phase::Stopping, &[DisarmDeadline, StartDelay, NextStep]),
        // Left from a clock that was disarmed too late.
        (Phase::Running, Event::StepDue) => (Phase::Running, &[]),
        (Phase::Running, Event::DelayOver) => (Phase::Running, &[]),
        (Phase::Running, Event::Exited) => (Phase::Draining, &[PublishExit, StartDelay, Drain]),
        // It closed its output and lives on: the exit comes from the pidfd, never from EOF.
        (Phase::Running, Event::StreamsDone) => (Phase::Running, &[]),
        (Phase::Running, Event::Reopened) => (Phase::Running, &[]),

        // The first stop wins.
        (Phase::Stopping, Event::Stop) => (Phase::Stopping, &[]),
        (Phase::Stopping, Event::StepDue) => (Phase::Stopping, &[NextStep]),
        // The streams are cut when the death is seen: it must die of SIGKILL, not of SIGPIPE.
        (Phase::Stopping, Event::DelayOver) => (Phase::Stopping, &[Kill]),
        (Phase::Stopping, Event::Exited) => (Phase::Draining, &[PublishExit, StopGroup, StartDelay, DrainStopped]),
        (Phase::Stopping, Event::StreamsDone) => (Phase::Stopping, &[]),
        (Phase::Stopping, Event::Reopened) => (Phase::Stopping, &[]),

        // Who cancels wants no more of it; the exit stays what it is.
        (Phase::Draining, Event::Stop) => (Phase::Draining, &[StopTree, CutStreams]),
        (Phase::Draining, Event::StepDue) => (Phase::Draining, &[NextStep]),
        (Phase::Draining, Event::DelayOver) => (Phase::Draining, &[Kill, CutStreams]),
        (Phase::Draining, Event::Exited) => (Phase::Draining, &[]),
        (Phase::Draining, Event::StreamsDone) => (Phase::Done, &[DisarmDeadline, Finish]),
        (Phase::Draining, Event::Reopened) => (Phase::Draining, &[]),

        (Phase::Done, Event::Stop) => (Phase::Done, &[StopTree]),
        // Only a group or cgroup that is being stopped without its leader still has steps and a delay.
        (Phase::Done, Event::StepDue) => (Phase::Done, &[NextStep]),
        (Phase::Done, Event::DelayOver) => (Phase::Done, &[Kill]),
        (Phase::Done, Event::Exited) => (Phase::Done, &[]),
        (Phase::Done, Event::StreamsDone) => (Phase::Done, &[]),
        // The only way back: it is dead, and what it left is worth waiting for again.
        (Phase::Done, Event::Reopened) => (Phase::Draining, &[]),
    }
}

#[cfg(test)]
mod tests {
    use super::Action::*;
    use super::*;

    macro_rules! cells {
        ($($name:ident: $phase:ident + $event:ident => $next:ident [$($action:ident),*];)*) => {
            $(#[test]
            fn $name() {
                let actions: &[Action] = &[$($action),*];
                assert_eq!(step(Phase::$phase, Event::$event), (Phase::$next, actions));
            })*

            #[test]
            fn every_cell_has_its_test() {
                let tested = [$((Phase::$phase, Event::$event)),*];
                for phase in [Phase::Running, Phase::Stopping, Phase::Draining, Phase::Done] {
                    for event in [Event::Stop, Event::StepDue, Event::DelayOver, Event::Exited, Event::StreamsDone, Event::Reopened] {
                        assert_eq!(tested.iter().filter(|cell| **cell == (phase, event)).count(), 1, "{phase:?} {event:?}");
                    }
                }
            }
        };
    }

    cells! {
        a_running_child_is_stopped_and_the_delay_starts: Running + Stop => Stopping [DisarmDeadline, StartDelay, NextStep];
        a_stale_step_does_not_touch_a_running_child: Running + StepDue => Running [];
        a_stale_delay_does_not_touch_a_running_child: Running + DelayOver => Running [];
        an_exit_is_published_before_its_output_is_drained: Running + Exited => Draining [PublishExit, StartDelay, Drain];
        eof_is_not_an_exit: Running + StreamsDone => Running [];
        the_first_stop_wins: Stopping + Stop => Stopping [];
        a_ladder_goes_on: Stopping + StepDue => Stopping [NextStep];
        the_delay_kills_in_the_middle_of_a_ladder: Stopping + DelayOver => Stopping [Kill];
        a_stopped_leader_leaves_its_group_to_the_ladder: Stopping + Exited => Draining [PublishExit, StopGroup, StartDelay, DrainStopped];
        eof_does_not_end_a_stop: Stopping + StreamsDone => Stopping [];
        a_cancel_after_the_exit_ends_the_capture: Draining + Stop => Draining [StopTree, CutStreams];
        a_ladder_goes_on_for_the_group_while_draining: Draining + StepDue => Draining [NextStep];
        the_delay_kills_the_group_and_cuts_the_streams: Draining + DelayOver => Draining [Kill, CutStreams];
        one_exit_is_enough: Draining + Exited => Draining [];
        complete_streams_end_it: Draining + StreamsDone => Done [DisarmDeadline, Finish];
        what_the_done_left_in_their_cgroup_is_stopped: Done + Stop => Done [StopTree];
        a_ladder_goes_on_for_the_group_after_all: Done + StepDue => Done [NextStep];
        the_delay_kills_the_group_after_all: Done + DelayOver => Done [Kill];
        the_done_do_not_exit: Done + Exited => Done [];
        the_done_have_no_streams: Done + StreamsDone => Done [];
        a_running_childs_pipes_are_read_in_time: Running + Reopened => Running [];
        a_stopping_childs_pipes_are_read_in_time: Stopping + Reopened => Stopping [];
        more_pipes_are_drained_with_the_others: Draining + Reopened => Draining [];
        output_that_is_asked_for_late_is_drained_then: Done + Reopened => Draining [];
    }
}
